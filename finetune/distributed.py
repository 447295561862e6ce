"""Plain data parallelism for fine-tuning: embeddings gathered with their gradient, parameter gradients summed.

Letters: W ranks, R rows of one rank, D width.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mose.errors import MoseError

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """This process among the `size` processes that torchrun started; a single process is rank 0 of 1."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Join the group that torchrun's variables describe (NCCL on GPUs, gloo on CPUs) for the length of the block."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost") and sys.platform == "linux":
        # All ranks are on this machine: no socket of theirs needs to be reachable from another.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, local_RD: Tensor) -> Tensor:
        context.rows = len(local_RD)
        parts = [torch.empty_like(local_RD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local_RD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        start = dist.get_rank() * context.rows
        return gradients[0][start : start + context.rows]


def gather_rows(local_RD: Tensor) -> Tensor:
    """Every rank's rows in rank order, [W * R, D], with gradient; without a group the rows themselves.

    Each rank computes the same loss of all rows, so a rank's gradient is its own slice of it, and `sum_gradients` then
    adds up parameter gradients that belong to different rows. Rows come back in rank order: a caller that dealt them otherwise
    puts them into the order of the batch, the same on every rank.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return local_RD
    gathered: Tensor = _GatherRows.apply(local_RD)  # type: ignore[no-untyped-call]
    return gathered


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add each parameter's gradient over the ranks; a parameter without one on this rank counts as zero."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


def on_first(world: World, work: Callable[[], Result]) -> Result:
    """The result of `work`, called on the first rank while the others wait; every rank calls this.

    Raises:
        MoseError: `work` raised it or an OSError; all ranks raise, so that none waits for a rank that has ended.
    """
    result, fault = None, None
    if world.is_first:
        try:
            result = work()
        except (MoseError, OSError) as error:
            if world.size == 1:
                raise
            fault = str(error)
    if world.size > 1:
        shared = [(result, fault)]
        dist.broadcast_object_list(shared, src=0)
        result, fault = shared[0]
    if fault is not None:
        raise MoseError(fault)
    return cast(Result, result)


def summed(values: Tensor, world: World) -> Tensor:
    """The sum over ranks, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def any_rank(world: World, flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on any rank: all ranks then act on it at the same step."""
    if world.size == 1:
        return flag
    return bool(summed(torch.tensor(int(flag), device=device), world))
