"""Several processes that train one prior: DistributedDataParallel, over gloo. [Li et al. 2020]

    torchrun --nproc-per-node 2 -m pyro_avse.cli train RECIPE --data FOLDER --out FOLDER

Every process holds the prior and the data. A minibatch has `batch_size` frames a process, each takes its share, and the
gradients are averaged. A share's noise and codes are drawn as one process would draw them for the whole minibatch, so
the curve is that of one process with so many times the batch size. What is measured or written is the first's.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pyro_avse.distributions import Path
from pyro_avse.typing import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Crew:
    """This process among those that train together; alone unless `crew_of_environment` says otherwise."""

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> tuple[slice, float]:
        """Which of a minibatch's `count` frames are this process's, and what they weigh: where there are too few for
        all, one that weighs nothing.
        """
        first, last = (count * rank // self.size for rank in (self.rank, self.rank + 1))
        return (slice(first, last), 1.0) if first < last else (slice(0, 1), 0.0)

    def draws(self, share: slice, count: int) -> AbstractContextManager[Any]:
        """Within it codes are drawn as one process would for the whole minibatch."""
        return nullcontext() if self.size == 1 else SharedDraws(share, count)

    def parallel(self, prior: nn.Module, loss: Callable[..., Any]) -> Callable[..., Any]:
        """`loss`, whose gradients in the prior's parameters are averaged over all processes."""
        if self.size == 1:
            return loss
        # an encoder may rest for an epoch, and AV-VAE's for all; pi is kept alike by `total`
        return DistributedDataParallel(
            _Loss(prior, loss), find_unused_parameters=True, broadcast_buffers=False
        )

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them."""
        if self.size == 1:
            return make()
        found: list[Any] = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(found)
        made: T = found[0]
        return made

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = Crew()
"""This process alone."""


class _Loss(nn.Module):
    """A prior whose `forward` is its loss, as DistributedDataParallel wants it."""

    def __init__(self, prior: nn.Module, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.prior, self.loss = prior, loss

    def forward(self, *batch: Any) -> Any:
        return self.loss(*batch)


class SharedDraws(Messenger):  # type: ignore[misc]
    """Within it the guide's codes are drawn for a whole minibatch of `count` frames, or cuts, and the `share` taken."""

    def __init__(self, share: slice, count: int) -> None:
        super().__init__()
        self.share, self.count = share, count

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in ("w", "z") or msg["value"] is not None:
            return
        fn, shape = msg["fn"], list(msg["fn"].shape())
        axis = -1 - len(fn.event_shape)
        shape[axis] = self.count
        if isinstance(fn, Path):
            eps = torch.randn(shape, dtype=fn.like.dtype, device=fn.like.device)
            msg["value"] = fn.of_noise(eps[self.share])[0]
        else:
            zero = fn.base_dist.loc.new_zeros(shape)
            eps = torch.normal(zero, torch.ones_like(zero))[
                ..., self.share, :
            ]  # as `rsample` draws
            msg["value"] = fn.base_dist.loc + eps * fn.base_dist.scale


@contextmanager
def crew_of_environment() -> Iterator[Crew]:
    """The processes that `torchrun` started, or this one alone.

    Raises InputError where another process is lost meanwhile: what was trained until then is in the checkpoint.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Crew()
        return
    dist.init_process_group("gloo")
    try:
        yield Crew(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if "onnection" not in str(error):  # gloo has no class of its own for it
            raise
        raise InputError(
            "another process of the training ended: start them again, with --resume"
        ) from None
    finally:
        dist.destroy_process_group()
