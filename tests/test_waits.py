"""An E-step asks the device for no value: on a GPU every such question waits until all that was asked of it is done.

Here, on a CPU, the questions are counted instead. What is left are one after a run of chains, whether it diverged, and
one an EM iteration, whether its objective is finite. (Pyro's own ELBO, in `amortised_vem`, and its NUTS ask more.)
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_avse.distributions import unchecked_normal
from pyro_avse.inference import KERNELS, LDEM, SCHEMES, RandomWalk, RobbinsMonro, run_chains
from pyro_avse.inference.adaptation import can_adapt
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.typing import Info, Kernel, State, Target

ASKS = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2"}


class Questions(TorchDispatchMode):
    """Counts the calls of torch whose result, or its shape, Python must know: item(), bool(), x[mask]."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in ASKS or by_mask:
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


def questions(call: Callable[[], object]) -> int:
    with Questions() as mode:
        call()
    return len(mode.asked)


@pytest.fixture
def posterior(small_prior: Callable[..., Any]) -> Callable[[str], CollapsedTarget]:
    """p(z | x) of two utterances of four frames under that prior, with a wide Gaussian for `independence`."""

    def build(name: str) -> CollapsedTarget:
        prior = small_prior(name).float()
        K, powers = prior.num_components, torch.rand(2, 2, 4, 7)
        pi, guide = torch.full((K, 2), 1 / K), unchecked_normal(torch.zeros(2), 3 * torch.ones(2))
        return CollapsedTarget(prior, None, *powers, pi, torch.ones(2, 4), proposal=guide)

    return build


@pytest.mark.parametrize("name", sorted(KERNELS.keys() - {"blocks"}))
def test_a_run_of_chains_asks_once(name: str, posterior: Callable[[str], CollapsedTarget]) -> None:
    """However many its steps, adapted or not: `stop_if_diverged`."""
    kernel = KERNELS[name]()
    target = posterior("min_vae_v2" if name == "gibbs" else "a_vae")
    for adapt in (None, RobbinsMonro()) if can_adapt(kernel) else (None,):
        for draws in (1, 6):

            def run(draws: int = draws, adapt: Any = adapt) -> None:
                run_chains(
                    kernel, target, torch.zeros(1, 2, 4, 2), draws=draws, warmup=3, adapt=adapt
                )

            assert questions(run) == 1


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("model", ["a_vae", "min_vae_v1", "two_decoders"])
@pytest.mark.parametrize(
    "scheme", ["vem", "collapsed_vem", "mcem", "peem", "gpeem", "ldem", "smooth", "importance"]
)
def test_an_em_iteration_asks_twice(
    scheme: str, model: str, padded: bool, small_prior: Callable[..., Any]
) -> None:
    """Whether the chains diverged, where there are chains, and whether the objective is finite; nothing else."""
    settings = LDEM(total_variation=1.0) if scheme == "smooth" else SCHEMES[scheme]()
    has_chains = scheme not in ("peem", "gpeem", "importance")
    prior, lips = small_prior(model).float(), torch.rand(2, 4, 67, 67)
    x = torch.randn(2, 4, 7, dtype=torch.complex64)
    mask = torch.arange(4) < torch.tensor([[4], [3]]) if padded else None

    def of(iterations: int) -> int:
        return questions(
            lambda: replace(settings, iterations=iterations)(prior, x, lips, mask=mask)
        )

    assert of(4) - of(2) == 2 * (1 + has_chains)


def test_what_looks_is_counted(posterior: Callable[[str], CollapsedTarget]) -> None:
    """A kernel that asks in every step, in each of the ways, is found out."""

    class Looks(RandomWalk):
        def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
            if (state.z > 0).all() and state.z[state.z > 0].sum().item() < 0:
                raise AssertionError
            return super().step(target, state, rng=rng)

    kernel: Kernel = Looks()
    start: Tensor = torch.ones(1, 2, 4, 2)
    target = posterior("a_vae")
    assert questions(lambda: run_chains(kernel, target, start, draws=6)) == 1 + 3 * 6
