"""Process groups of a run: one function, `initialize_parallel()`, owns everything that is global to the process."""

import os
import socket
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist

from mose.errors import MoseError
from pretrain.config.run import Layout, PretrainConfig
from pretrain.parallel.topology import place_of

SLURM_NAMES = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


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


def _started_by_srun() -> bool:
    """Whether this process is a task of a job step; the batch script itself has SLURM's variables, too, but no step's rank."""
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ


def launched_world_size() -> int:
    """Ranks that the launcher (deepspeed, torchrun, srun) started; 1 without one."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) if _started_by_srun() else 1


def _complete_environment() -> None:
    """Set the variables torch wants from SLURM's, or to a process of its own.

    Raises:
        MoseError: several ranks were launched, but nothing says where they meet.
    """
    if "RANK" not in os.environ and _started_by_srun():
        os.environ.update({name: os.environ[slurm] for name, slurm in SLURM_NAMES.items() if slurm in os.environ})
    if "RANK" not in os.environ:
        os.environ.update(ALONE, MASTER_PORT=str(_free_port()))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise MoseError(
                f"{name}: not set, expected where the {os.environ['WORLD_SIZE']} ranks meet (launchers set it; srun does not)"
            )


def choose_accelerator() -> None:
    """Say which accelerator deepspeed shall use, which it reads when it is imported: call this before `pretrain.train` is."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _free_port() -> int:
    """A port nobody listens on: two runs on one machine must not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def initialize_parallel(config: PretrainConfig) -> ParallelContext:
    """Join the process group, build megatron's groups if layers are shared, and fix threads and device.

    Raises:
        MoseError: the launched ranks do not fit the config, or bf16 tensor parallelism is asked of an unfit machine.
    """
    layout = Layout.of(config, launched_world_size())
    _complete_environment()
    torch.set_num_threads(config.parallel.threads_per_rank)
    from pretrain.parallel.engine import join_process_group

    join_process_group(config.parallel.collective_timeout_seconds)
    if dist.get_world_size() != layout.world_size:
        raise MoseError(f"launcher: {dist.get_world_size()} ranks joined, WORLD_SIZE says {layout.world_size}")
    return build_context(layout, _device())


def build_context(layout: Layout, device: torch.device) -> ParallelContext:
    """The context of this process in `layout`; the process group must be up."""
    place = place_of(dist.get_rank(), layout.tensor_ranks)
    if layout.tensor_ranks == 1:
        return ParallelContext(place.rank, place.data_rank, 0, layout, device, dist.group.WORLD, None, None)
    from pretrain.parallel.tensor import initialize_tensor_groups

    mpu = initialize_tensor_groups(layout.tensor_ranks)
    groups = (mpu.get_data_parallel_group(), mpu.get_tensor_model_parallel_group())
    return ParallelContext(place.rank, place.data_rank, place.tensor_rank, layout, device, *groups, mpu)


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def leave_parallel() -> None:
    """Close the process group, so that the last rank does not warn of a leak."""
    if dist.is_initialized():
        dist.destroy_process_group()
