"""Where a process of a run stands among the ranks, and the groups it talks in."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist

from pretrain.config.run import Layout

SLURM_NAMES = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}


@dataclass(frozen=True)
class ParallelContext:
    """Where this process stands, and the groups it talks in; `mpu` is None without tensor parallelism."""

    rank: int
    data_rank: int
    tensor_rank: int
    layout: Layout
    device: torch.device
    data_group: Any
    tensor_group: Any
    mpu: Any

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def sum_over_data(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over data ranks, in place; the same on every rank afterwards."""
        dist.all_reduce(tensor, group=self.data_group)
        return tensor

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks, in place; the same on every rank afterwards."""
        dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank; any picklable object, so for rare and small things."""
        values: list[Any] = [None] * self.layout.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()


def started_by_srun() -> bool:
    """Whether this process is a task of a job step; the batch script itself has SLURM's variables, too, but no step's rank."""
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ


def launched_world_size() -> int:
    """Ranks that the launcher (deepspeed, torchrun, srun) started; 1 without one."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) if started_by_srun() else 1


def choose_accelerator() -> None:
    """Say which accelerator deepspeed shall use, which it reads when it is imported: call this before `pretrain.train` is."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
