"""The processes of one training run, and what they tell each other.

Everything here is of no effect in a process that runs alone.

Shape legend: W processes, B images of a global batch.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from evitlab.training.launch import local_rank, world_size

T = TypeVar("T")
# Of a process that no longer answers but is not gone: a network that fell silent, say. Long
# enough for the slowest start, when one machine reads its data long after another.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """The processes of a run as one of them sees them: its own number and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and draws bars."""
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """Every W-th entry, from this process's own: neighbours go to different processes.

        With repeated augmentation these are views of one image, as in DeiT's sampler. The parts'
        lengths differ by one at most.
        """
        return batch[self.rank :: self.size]

    def sum(self, value: Tensor) -> Tensor:
        """Over all processes, of what each passes in."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: T) -> list[T]:
        """What each process passes in, in the order of their numbers."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, compute: Callable[[], T]) -> T:
        """What `compute` returns in process 0, or the error that it raises there, in all."""
        if self.size == 1:
            return compute()
        answer: list[Any] = [None, None]
        if self.main:
            try:
                answer[0] = compute()
            except Exception as error:  # raised below, here and in the other processes
                answer[1] = error
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def share_state(self, model: nn.Module) -> None:
        """Give every process the parameters and buffers of process 0, in place."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in [*model.parameters(), *model.buffers()]:
                    # Of channels-last weights, a copy: the message must be contiguous.
                    value = tensor.detach().contiguous()
                    dist.broadcast(value, src=0)
                    tensor.detach().copy_(value)

    def parallel(self, model: nn.Module, *, share_buffers: bool) -> nn.Module:
        """The model with a backward pass that averages gradients over the processes.

        Args:
            model: on its device; what is frozen already has no `requires_grad`.
            share_buffers: each forward pass starts from the buffers of process 0, so the running
                statistics are those of its images.
        """
        if self.size == 1:
            return model
        # None on a CPU, where DistributedDataParallel takes no number.
        device = next(model.parameters()).device.index
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {name: share_buffers}  # renamed by torch on the way
        return DistributedDataParallel(
            model,
            device_ids=None if device is None else [device],
            gradient_as_bucket_view=True,
            **options,
        )


def gradients_stay(step_model: nn.Module, stay: bool) -> AbstractContextManager[None]:
    """Within, backward passes of what `parallel` returned add up gradients without sending them."""
    return step_model.no_sync() if stay and hasattr(step_model, "no_sync") else nullcontext()  # type: ignore[operator]


ALONE = Ranks()


def current_ranks() -> Ranks:
    """Those of the process group that exists, else this process alone."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return ALONE


def own_device(device: str | torch.device) -> str | torch.device:
    """`cuda` stands for this process's own GPU where torchrun started several."""
    if world_size() > 1 and str(device) == "cuda":
        return f"cuda:{local_rank()}"
    return device


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Within, the processes that torchrun started are one group: gloo on a CPU, NCCL on GPUs.

    A group that exists already is used and left as it is.

    Raises:
        RuntimeError: another process does not come, or is lost.
    """
    if current_ranks() != ALONE or world_size() == 1:
        yield current_ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        with warnings.catch_warnings():
            # Of a 1 x 1 kernel's gradient, whose memory is the same in either layout.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield current_ranks()
    finally:
        dist.destroy_process_group()
