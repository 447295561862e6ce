"""Start and end of a run's process groups: `initialize_parallel()` sets everything that is global to the process."""

import datetime
import errno
import ipaddress
import os
import socket
from typing import Any

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import HashStore, Store, TCPStore

from mose.errors import MoseError, first_line
from pretrain.config.deepspeed_options import ZERO
from pretrain.config.run import Layout, PretrainConfig
from pretrain.parallel.context import SLURM_NAMES, ParallelContext, launched_world_size, started_by_srun
from pretrain.parallel.engine import join_process_group
from pretrain.parallel.partition import PartitionUnit
from pretrain.parallel.tensor import initialize_tensor_groups
from pretrain.parallel.topology import place_of

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
# Ranks that connect at the same moment.
_BACKLOG = 2048


def _complete_environment() -> None:
    """Set torch's environment variables from SLURM's, or for a single process.

    Raises:
        MoseError: several ranks were launched without a rendezvous address.
    """
    if "RANK" not in os.environ and started_by_srun():
        os.environ.update({name: os.environ[slurm] for name, slurm in SLURM_NAMES.items() if slurm in os.environ})
    if "RANK" not in os.environ:
        os.environ.update(ALONE)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise MoseError(
                f"{name}: not set, expected where the {os.environ['WORLD_SIZE']} ranks meet (launchers set it; srun does not)"
            )


def open_store(timeout_seconds: int) -> Store | None:
    """The store in which the ranks meet, which rank 0 serves on the address that MASTER_ADDR names and on no other.

    torch by itself serves it on every interface of the machine, without a password: whoever reaches the port could write into
    it. Where all ranks are on this machine, gloo and NCCL are kept on the loopback interface as well. A process without others
    needs no socket. None where torchrun's agent serves the store.

    Raises:
        MoseError: the port is taken.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if _is_loopback(host):
        interface = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            if interface is not None:
                os.environ.setdefault(variable, interface)
    if world_size == 1:
        return HashStore()
    timeout = datetime.timedelta(seconds=timeout_seconds)
    listener = _listener(host, port) if rank == 0 else None
    return TCPStore(host, port, world_size, rank == 0, timeout, master_listen_fd=listener)


def _is_loopback(host: str) -> bool:
    """Whether `host` is written as a loopback address: then no rank can be on another machine.

    Not resolved: many machines give their own name a loopback address, and other machines know it by another one.
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listener(host: str, port: int) -> int | None:
    """A descriptor of a socket that listens on `host` alone; None where other machines know this one by another address."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    if not _is_loopback(host) and _is_loopback(str(address[0])):
        return None
    with socket.socket(family, kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return None
            raise MoseError(f"MASTER_PORT: {port} of {host}: {error.strerror}; expected a free port") from error
        return listener.detach()


def initialize_parallel(config: PretrainConfig) -> ParallelContext:
    """Set the environment, the device and threads, join the process group, and build the groups of tensor parallelism.

    In this order: CUDA and its allocator read the environment when they first touch the device, NCCL and DeepSpeed take the
    device that is current when they first communicate.

    Raises:
        MoseError: the launched ranks do not fit the config, or did not meet within the timeout of a collective.
    """
    layout = Layout.of(config, launched_world_size())
    _complete_environment()
    for name, value in cuda_environment(config).items():
        os.environ.setdefault(name, value)
    device = _device()
    if config.parallel.deterministic:
        torch.use_deterministic_algorithms(True)
        # Otherwise the same switch also writes every new tensor once more, to reveal reads of memory that nothing has set.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(config.parallel.threads_per_rank)
    seconds = config.parallel.collective_timeout_seconds
    try:
        join_process_group(seconds, open_store(seconds))
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = first_line(error)[:120]
        raise MoseError(f"{where}: the {layout.world_size} ranks did not meet within {seconds} s ({reason})") from error
    if dist.get_world_size() != layout.world_size:
        raise MoseError(f"launcher: {dist.get_world_size()} ranks joined, WORLD_SIZE says {layout.world_size}")
    return build_context(layout, device, seconds)


def cuda_environment(config: PretrainConfig) -> dict[str, str]:
    """Environment variables of a CUDA run, where the user has set none of the same name."""
    settings = {
        # The number of real tokens differs from step to step, and blocks of fixed sizes would leave gaps that none fits.
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        # The flight recorder keeps the last collectives of each rank, and torch writes them to files when one times out.
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }
    if config.parallel.deterministic:
        # cuBLAS sums in the same order from call to call only with workspaces of its own; torch refuses to run without.
        settings["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if os.environ.get("PYTORCH_CUDA_ALLOC_CONF"):
        del settings["PYTORCH_ALLOC_CONF"]
    # megatron starts the all-reduce of input gradients before the weight gradient's product, and only a single queue keeps that
    # order on the device. The same queue would make ZeRO's reduction beside the backward pass wait for the kernels before it.
    zero_options: Any = config.deepspeed.get(ZERO, {})
    if config.parallel.tensor_parallel_size > 1 and not zero_options.get("overlap_comm"):
        settings["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    return settings


def build_context(layout: Layout, device: torch.device, timeout_seconds: int | None = None) -> ParallelContext:
    """The context of this process in `layout`; the process group must be up. The timeout is that of collectives of groups."""
    place = place_of(dist.get_rank(), layout.tensor_ranks)
    if layout.tensor_ranks == 1:
        unit = PartitionUnit.of(place, layout.partition_ranks, timeout_seconds) if layout.partition_ranks else None
        return ParallelContext(place.rank, place.data_rank, 0, layout, device, dist.group.WORLD, unit)
    mpu = initialize_tensor_groups(place, layout.tensor_ranks, timeout_seconds)
    data_group = mpu.get_data_parallel_group()
    return ParallelContext(place.rank, place.data_rank, place.tensor_rank, layout, device, data_group, mpu)


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Under `srun --gpus-per-task=1` each process sees one device, whatever its number on the node. DeepSpeed reads the variable.
    index = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
    os.environ["LOCAL_RANK"] = str(index)
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def leave_parallel() -> None:
    """Destroy the process group, which torch otherwise reports as leaked."""
    if dist.is_initialized():
        dist.destroy_process_group()
