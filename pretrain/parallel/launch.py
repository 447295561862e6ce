"""Start and end of a run's process groups: `initialize_parallel()` sets everything that is global to the process."""

import os
import socket

import torch
from torch import distributed as dist

from mose.errors import MoseError
from pretrain.config.run import Layout, PretrainConfig
from pretrain.parallel.context import SLURM_NAMES, ParallelContext, launched_world_size, started_by_srun
from pretrain.parallel.engine import join_process_group
from pretrain.parallel.tensor import initialize_tensor_groups
from pretrain.parallel.topology import place_of

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def _complete_environment() -> None:
    """Set torch's environment variables from SLURM's, or for a single process.

    Raises:
        MoseError: several ranks were launched without a rendezvous address.
    """
    if "RANK" not in os.environ and started_by_srun():
        os.environ.update({name: os.environ[slurm] for name, slurm in SLURM_NAMES.items() if slurm in os.environ})
    if "RANK" not in os.environ:
        os.environ.update(ALONE, MASTER_PORT=str(_free_port()))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise MoseError(
                f"{name}: not set, expected where the {os.environ['WORLD_SIZE']} ranks meet (launchers set it; srun does not)"
            )


def _free_port() -> int:
    """A port that nobody listens on, so that two runs on one machine do not join each other's group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def initialize_parallel(config: PretrainConfig) -> ParallelContext:
    """Join the process group, build megatron's groups for tensor parallelism, and set threads and device.

    Raises:
        MoseError: the launched ranks do not fit the config, or did not meet within the timeout of a collective.
    """
    layout = Layout.of(config, launched_world_size())
    _complete_environment()
    torch.set_num_threads(config.parallel.threads_per_rank)
    seconds = config.parallel.collective_timeout_seconds
    try:
        join_process_group(seconds)
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0][:120]
        raise MoseError(f"{where}: the {layout.world_size} ranks did not meet within {seconds} s ({reason})") from error
    if dist.get_world_size() != layout.world_size:
        raise MoseError(f"launcher: {dist.get_world_size()} ranks joined, WORLD_SIZE says {layout.world_size}")
    return build_context(layout, _device())


def build_context(layout: Layout, device: torch.device) -> ParallelContext:
    """The context of this process in `layout`; the process group must be up."""
    place = place_of(dist.get_rank(), layout.tensor_ranks)
    if layout.tensor_ranks == 1:
        return ParallelContext(place.rank, place.data_rank, 0, layout, device, dist.group.WORLD, None)
    mpu = initialize_tensor_groups(layout.tensor_ranks)
    data_group = mpu.get_data_parallel_group()
    return ParallelContext(place.rank, place.data_rank, place.tensor_rank, layout, device, data_group, mpu)


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def leave_parallel() -> None:
    """Destroy the process group, which torch otherwise reports as leaked."""
    if dist.is_initialized():
        dist.destroy_process_group()
