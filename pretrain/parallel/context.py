"""The place of a process among the ranks of a run, and its process groups."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist

from pretrain.config.run import Layout

SLURM_NAMES = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}


@dataclass(frozen=True)
class ParallelContext:
    """The ranks of this process and its process groups; `mpu` is None without tensor parallelism."""

    rank: int
    data_rank: int
    tensor_rank: int
    layout: Layout
    device: torch.device
    data_group: Any
    mpu: Any

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and console lines."""
        return self.rank == 0

    def sum_over_data(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce: sum a tensor over data ranks, in place."""
        dist.all_reduce(tensor, group=self.data_group)
        return tensor

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce: sum a tensor over all ranks, in place."""
        dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """All-gather: every rank's value, by rank. Any picklable object; pickling is slow, so for rare and small values."""
        values: list[Any] = [None] * self.layout.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()


def started_by_srun() -> bool:
    """Whether srun started this process; a batch script has SLURM's variables too, but no rank of a job step."""
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ


def launched_world_size() -> int:
    """Ranks that the launcher (deepspeed, torchrun, srun) started; 1 without one."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) if started_by_srun() else 1


def choose_accelerator() -> None:
    """Set the accelerator that deepspeed reads when it is imported: call this before `pretrain.train` is imported."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
