"""Several steps of a kernel as one compiled call: torch.compile fuses what stands between the matrix products.

A step of random_walk is some forty calls of torch, each a pass through memory. `Compiled(kernel, steps=10)` records ten
steps of the kernel as it stands, target, decoder, gradient and acceptance, as one program, and compiles that: there is
no second copy of the mathematics. Random numbers are drawn outside of it, from the caller's generator, in the kernel's
own order, so that a seed gives the chain that the kernel itself would give, but for the rounding of fused arithmetic.

When to use it: for long runs on recordings of one length, and many of them. A program is compiled, in ten to forty
seconds, at the first block of every kernel, prior and shape, then kept in `programs`; it needs a C++ compiler. While
step sizes are adapted, and for what a multiple of `steps` leaves over, the kernel steps by itself.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

import torch
from pyro.distributions.util import validation_enabled
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from pyro_avse.inference.settings import check_settings
from pyro_avse.typing import Info, InputError, Kernel, State, Target

Draw = Callable[[torch.Generator], Tensor]
Move = tuple[State, Info]


@dataclass(frozen=True)
class Program:
    """`steps` steps of a kernel: what to draw, the compiled function, and the form of what it returns."""

    draws: list[Draw]
    function: Callable[..., list[Tensor]]
    moves: list[Move]


@dataclass(frozen=True)
class Compiled:
    """`inner`, compiled `steps` steps at a time.

    Raises:
        InputError: a kernel that proposes from a guide, which each E-step makes anew; a step that looks at a tensor's
            value, as `if` and torch.normal(mean, std) do; no C++ compiler.
    """

    inner: Kernel
    steps: int = 10
    programs: dict[Hashable, Program] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_settings(self, steps=1)
        if getattr(self.inner, "uses_guide", False):
            raise InputError(
                "Compiled: the independence kernel proposes from a guide that each E-step makes anew: take it "
                "uncompiled"
            )

    def init(self, target: Target, z: Tensor) -> State:
        """The inner kernel's."""
        return self.inner.init(target, z)

    def step(self, target: Target, state: Any, *, rng: torch.Generator) -> Move:
        """One step of the inner kernel, not compiled."""
        return self.inner.step(target, state, rng=rng)

    def block(self, target: Target, state: Any, *, rng: torch.Generator) -> list[Move]:
        """The next `steps` steps; the first call for these shapes compiles them."""
        key = (self.steps, signature(self.inner), signature(target), signature(state))
        if key not in self.programs:
            self.programs[key] = self._record(target, state)
        program = self.programs[key]
        drawn = [draw(rng) for draw in program.draws]
        results = program.function(*inputs_of((self.inner, target, state)), *drawn)
        return rebuild(program.moves, iter(results))

    def _record(self, target: Target, state: Any) -> Program:
        with Randomness() as real:
            rng = torch.Generator(device=state.z.device).manual_seed(0)
            moves = walk(self.inner, target, state, self.steps, rng)

        def of_tensors(*tensors: Tensor) -> list[Tensor]:
            given = iter(tensors)
            kernel, here, start = rebuild((self.inner, target, state), given)
            with validation_enabled(False), Randomness(given):
                return leaves(walk(kernel, here, start, self.steps, rng))

        inputs = inputs_of((self.inner, target, state)) + [draw(rng) for draw in real.draws]
        try:
            graph = make_fx(of_tensors)(*inputs)
            function = torch._inductor.compile(graph, inputs)  # torch.compile less its guards
            function(*inputs)  # the first call compiles
        except RuntimeError as error:
            cause = " ".join(str(error).split("\n")[:2])
            raise InputError(
                f"Compiled: {type(self.inner).__name__} cannot be compiled ({cause}): its step may look at no tensor's "
                "value, and torch.compile needs a C++ compiler; or take it uncompiled"
            ) from error
        return Program(real.draws, function, moves)


def walk(
    kernel: Kernel, target: Target, state: Any, steps: int, rng: torch.Generator
) -> list[Move]:
    """The moves of `steps` steps."""
    moves = []
    for _ in range(steps):
        state, info = kernel.step(target, state, rng=rng)
        moves.append((state, info))
    return moves


class Randomness(TorchFunctionMode):
    """Notes every draw from a generator; with `given`, takes the next of those tensors in place of drawing.

    A draw may fill a tensor (`x.exponential_()`), but not depend on one, as torch.normal(mean, std) does: it is made
    again where there is no such tensor. Raises InputError for those.
    """

    def __init__(self, given: Iterator[Tensor] | None = None) -> None:
        super().__init__()
        self.given = given
        self.draws: list[Draw] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        generator = kwargs.pop("generator", None)
        if generator is None:
            return func(*args, **kwargs)
        fills = func.__name__.endswith("_")
        if any(isinstance(a, Tensor) for a in [*args[1 if fills else 0 :], *kwargs.values()]):
            raise InputError(
                f"Compiled: {func.__name__} draws by the values of a tensor: draw by randn, rand or exponential_, and "
                "shift and scale what comes, or take the kernel uncompiled"
            )
        if self.given is not None:
            drawn = next(self.given)
            return args[0].copy_(drawn) if fills else drawn

        def draw(rng: torch.Generator) -> Tensor:
            own = [torch.empty_like(args[0]), *args[1:]] if fills else args
            return func(*own, **kwargs, generator=rng)

        self.draws.append(draw)
        return func(*args, **kwargs, generator=generator)


def leaves(tree: Any) -> list[Tensor]:
    """The tensors in (nested) dataclasses, tuples and lists; a network is no dataclass, and keeps its own."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for branch in _branches(tree) for leaf in leaves(branch)]


def inputs_of(tree: Any) -> list[Tensor]:
    """The same, none of them a view: how they lie in memory is then no part of a program."""
    return [leaf.contiguous() for leaf in leaves(tree)]


def rebuild(tree: Any, given: Iterator[Tensor]) -> Any:
    """The same tree with other tensors, in the order of `leaves`."""
    if isinstance(tree, Tensor):
        return next(given)
    if isinstance(tree, tuple | list):
        return type(tree)(rebuild(branch, given) for branch in tree)
    if names := _fields(tree.__class__):
        return type(tree)(**{name: rebuild(getattr(tree, name), given) for name in names})
    return tree


def signature(tree: Any) -> Hashable:
    """What a program depends on: of tensors their form, of all else what it is."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.dtype, tree.device
    branches = _branches(tree)
    return (type(tree), *map(signature, branches)) if branches else tree


def _branches(tree: Any) -> list[Any]:
    if isinstance(tree, tuple | list):
        return list(tree)
    return [getattr(tree, name) for name in _fields(tree.__class__)]


@cache
def _fields(of: Hashable) -> tuple[str, ...]:
    """The names of a dataclass's fields, by which it can be made again."""
    return tuple(f.name for f in fields(of)) if is_dataclass(of) else ()
