"""What one process measures of its device and its node; the only module of `cluster` that imports torch, and not before it must.

Every product of matrices and every sum is compared with a value that is known: silent data corruption reached Llama 3's training
six times in 54 days (arXiv 2407.21783, table 5). Devices of one kind must agree in every bit, since they run the same kernel.
"""

import hashlib
import math
import os
import platform
import re
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import slurm
from cluster.preflight.records import (
    ACROSS,
    BEGIN,
    CLOCK,
    DEVICE,
    DISK,
    DONE,
    IMPORT,
    IN_NODE,
    MEET,
    PRODUCTS,
)
from mose.errors import MoseError, first_line

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

Tell = Callable[..., None]
_SEED = 20_261_128
# Large enough to keep a device busy, small enough to check every element on the host. bf16 as in training.
_GPU_SIZE, _CPU_SIZE = 4096, 512
_GPU_BATCH, _CPU_BATCH = 32, 2
_PRODUCT_SECONDS = 1.0
_CLOCK_ROUNDS = 5
_REDUCE_ROUNDS = 5
_GPU_REDUCE_BYTES, _CPU_REDUCE_BYTES = 256 << 20, 4 << 20
# The product of a row with a random vector sums as many rounding errors as it has elements: their share of the result is that of
# one element, on average. Over all rows the largest is some four times as large; a sign or exponent that flips gives far more.
_ALLOWED_ERROR = {"torch.bfloat16": 2e-2, "torch.float32": 1e-4}
_LARGEST_NUMBER = 1e300
_FIRST_PORT, _PORTS = 10_000, 20_000


@dataclass(frozen=True)
class Place:
    """One process among all; ranks count the devices of the first node, then those of the second, and so on."""

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    node: str
    address: str
    """Where rank 0 listens."""
    port: int

    @property
    def index(self) -> int:
        """Number of the node."""
        return self.rank // self.local_ranks

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.ranks // self.local_ranks

    def ranks_of(self, *nodes: int) -> list[int]:
        """The ranks of some nodes."""
        return [node * self.local_ranks + local for node in sorted(nodes) for local in range(self.local_ranks)]


def place_of(environment: Mapping[str, str], local_ranks: int) -> Place:
    """The place of this process among `local_ranks` per node, as its parent or srun says it in the environment.

    Raises:
        MoseError: neither does.
    """
    started_here = "RANK" in environment
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK") if started_here else ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    if missing := [name for name in names if name not in environment]:
        raise MoseError(f"preflight: {missing[0]} is not set; expected --measure only in processes that `preflight` starts")
    rank, ranks, local = (int(environment[name]) for name in names)
    node = environment.get("SLURMD_NODENAME") or socket.gethostname()
    listed = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    address = environment.get("MASTER_ADDR") or (slurm.expand_nodes(listed)[0] if listed else "127.0.0.1")
    port = int(environment.get("MASTER_PORT") or _FIRST_PORT + int(environment.get("SLURM_JOB_ID", "0")) % _PORTS)
    return Place(rank, ranks, local, local_ranks, node, address, port)


def measure(place: Place, folder: Path, gpus_per_node: int, seconds: float, tell: Tell) -> None:
    """Measure everything, and pass each fact to `tell` at once: what hangs later leaves the facts before it.

    Processes that find a fault in themselves still meet the others, so that those need not wait for the time limit; then the
    all-reduces are left out.
    """
    end = time.monotonic() + seconds
    tell(stage=BEGIN, local_rank=place.local_rank)
    at = [BEGIN]

    def enter(stage: str) -> None:
        at.append(stage)
        tell(stage=stage)

    device = None
    try:
        device = _measure_alone(place, folder, gpus_per_node, enter, tell)
    except Exception as error:
        tell(fault=f"{at[-1]}: {first_line(error)}")
    if place.ranks > 1:
        try:
            _measure_together(place, device, end, enter, tell)
        except Exception as error:
            tell(error=first_line(error))
            return
    tell(stage=DONE)


def _measure_alone(place: Place, folder: Path, gpus_per_node: int, enter: Callable[[str], None], tell: Tell) -> "torch.device":
    """Everything that needs no other process."""
    enter(DISK)
    if place.local_rank == 0:
        tell(run_free=_writable_bytes(folder), temporary_free=_writable_bytes(Path(tempfile.gettempdir())))
    enter(IMPORT)
    # Processes that wait for a broken node would write pages of stack frames of the library's own into the job's log.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    enter(DEVICE)
    if gpus_per_node:
        count = torch.cuda.device_count()
        tell(devices=count)
        # A site may show each task its own device only, under number 0.
        if not count or place.local_rank >= count > 1:
            raise MoseError(f"no device {place.local_rank}: {count} visible")
        device = torch.device("cuda", place.local_rank % count)
        torch.cuda.set_device(device)
        identity = str(getattr(torch.cuda.get_device_properties(device), "uuid", device.index))
        free, total = torch.cuda.mem_get_info(device)
        tell(identity=identity)
        tell(kind=f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}", memory=total, memory_free=free)
    else:
        device = torch.device("cpu")
        total, free = _host_memory()
        threads = torch.get_num_threads()
        tell(kind=f"{_processor()}, {threads} threads, torch {torch.__version__}", memory=total, memory_free=free)
    enter(PRODUCTS)
    tell(**_products(device))
    return device


def _writable_bytes(folder: Path) -> int | None:
    """Free bytes of the nearest folder that is there; None where a file cannot be written, as on a disk that went read-only."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".preflight-") as file:
            file.write(b"0" * 4096)
            os.fsync(file.fileno())
            found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize
    except OSError:
        return None


def _host_memory() -> tuple[int, int]:
    """Total and available bytes of the node's memory."""
    values = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text("utf-8"), re.MULTILINE))
    return int(values["MemTotal"]) * 1024, int(values["MemAvailable"]) * 1024


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _products(device: "torch.device") -> dict[str, Any]:
    """Digest, error and rate of one matrix product, computed again and again."""
    import torch

    on_gpu = device.type == "cuda"
    size, batch = (_GPU_SIZE, _GPU_BATCH) if on_gpu else (_CPU_SIZE, _CPU_BATCH)
    kind, bits = (torch.bfloat16, torch.int16) if on_gpu else (torch.float32, torch.int32)
    # The CPU's generator gives the same numbers on every node.
    generator = torch.Generator().manual_seed(_SEED)
    left, right = (torch.randn(size, size, generator=generator).to(kind) for _ in range(2))
    vector = torch.randn(size, generator=generator, dtype=torch.float64)
    a, b = left.to(device), right.to(device)
    # By the same call as all others: another one might choose another kernel, and with it other roundings.
    first = torch.empty(size, size, dtype=kind, device=device)
    torch.mm(a, b, out=first)
    host = first.cpu()
    wanted = left.double() @ (right.double() @ vector)
    error = float(((host.double() @ vector - wanted).abs().max() / wanted.square().mean().sqrt()).item())
    again, differing, rates = torch.empty_like(first), 0, list[float]()
    end = time.monotonic() + _PRODUCT_SECONDS
    while not rates or time.monotonic() < end:
        _synchronize(device)
        begun = time.perf_counter()
        for _ in range(batch):
            torch.mm(a, b, out=again)
        _synchronize(device)
        rates.append(batch * 2 * size**3 / (time.perf_counter() - begun))
        differing += int((again.view(bits) != first.view(bits)).any().item())
    # JSON has no NaN; a product that holds one is as wrong as can be.
    ratio = error / _ALLOWED_ERROR[str(kind)]
    return {
        "digest": hashlib.sha256(host.view(bits).numpy().tobytes()).hexdigest()[:16],
        "error_ratio": _LARGEST_NUMBER if math.isnan(ratio) else min(ratio, _LARGEST_NUMBER),
        "products": len(rates) + 1,
        "differing": differing,
        # Not the best: a device that is throttled by heat is fast at first.
        "flops": statistics.median(rates),
    }


def _synchronize(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measure_together(place: Place, device: "torch.device | None", end: float, enter: Callable[[str], None], tell: Tell) -> None:
    """Clocks and all-reduces; a process that could not measure itself has no `device`."""
    enter(MEET)
    store = _meet(place, end)
    everyone_fit = _all_agree(store, place, device is not None)
    if place.local_rank == 0:
        enter(CLOCK)
        tell(clock=_clock_readings(store, place.nodes))
    if device is not None and everyone_fit:
        _measure_reductions(place, store, device, end, enter, tell)
    # Rank 0 serves the store, so it ends last.
    if store.add("gone", 1) == place.ranks:
        store.set("all gone", "1")
    if place.rank == 0:
        store.wait(["all gone"])


def _meet(place: Place, end: float) -> "Store":
    from torch._C._distributed_c10d import TCPStore

    left = timedelta(seconds=max(1.0, end - time.monotonic()))
    return TCPStore(place.address, place.port, place.ranks, is_master=place.rank == 0, timeout=left, wait_for_workers=False)


def _all_agree(store: "Store", place: Place, fit: bool) -> bool:
    """Whether every process is fit; waits for all of them."""
    if not fit:
        store.add("unfit", 1)
    if store.add("here", 1) == place.ranks:
        store.set("all here", "1")
    store.wait(["all here"])
    return store.add("unfit", 0) == 0


def _clock_readings(store: "Store", nodes: int) -> list[float]:
    """The node's clock whenever the last node has come to the same line: the moments are equal to some milliseconds.

    Nodes meet through the store and not in a collective, which would need a connection between each two of them.
    """
    readings = []
    for number in range(_CLOCK_ROUNDS):
        if store.add(f"clock {number}", 1) == nodes:
            store.set(f"tick {number}", "1")
        store.wait([f"tick {number}"])
        readings.append(time.time())
    return readings


def _measure_reductions(
    place: Place, store: "Store", device: "torch.device", end: float, enter: Callable[[str], None], tell: Tell
) -> None:
    """All-reduce within the node, with each of the two neighbours on a ring of nodes, and among all."""
    from torch import distributed as dist

    left = timedelta(seconds=max(1.0, end - time.monotonic()))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.ranks, timeout=left)
    try:
        # Every process makes every group, in one order: torch numbers them. Who is no member only counts.
        if place.local_ranks > 1:
            enter(IN_NODE)
            groups = [dist.new_group(place.ranks_of(node)) for node in range(place.nodes)]
            rate, right = _reduction(groups[place.index], place.local_ranks, device)
            tell(in_node=rate, in_node_right=right)
        if place.nodes > 1:
            enter(ACROSS)
            for pair in links(place.nodes):
                group = dist.new_group(place.ranks_of(*pair))
                if place.index not in pair:
                    continue
                rate, right = _reduction(group, 2 * place.local_ranks, device)
                if place.local_rank == 0:
                    other = pair[0] if pair[1] == place.index else pair[1]
                    tell(links=[{"rank": other * place.local_ranks, "bytes_per_second": rate, "is_right": right}])
            tell(everywhere=_reduction(None, place.ranks, device)[0])
    finally:
        dist.destroy_process_group()


def links(nodes: int) -> list[tuple[int, int]]:
    """The pairs of neighbours on a ring of nodes, in the order in which they are measured.

    Every second link first, so that half of the nodes' pairs work at the same time; then the others, and of an odd number of
    nodes the link that closes the ring. Two nodes have one link.
    """
    ring = [(number, (number + 1) % nodes) for number in range(nodes if nodes > 2 else nodes - 1)]
    last = [ring.pop()] if nodes % 2 and nodes > 2 else []
    return ring[::2] + ring[1::2] + last


def _reduction(group: "ProcessGroup | None", ranks: int, device: "torch.device") -> tuple[float, bool]:
    """Bus bandwidth of an all-reduce in bytes per second, and whether every sum was right. The best round counts: the first
    ones connect."""
    import torch
    from torch import distributed as dist

    size = _GPU_REDUCE_BYTES if device.type == "cuda" else _CPU_REDUCE_BYTES
    tensor = torch.empty(size // 4, device=device)
    best, right = 0.0, True
    for _ in range(_REDUCE_ROUNDS):
        tensor.fill_(1.0)
        _synchronize(device)
        begun = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        _synchronize(device)
        best = max(best, size / (time.perf_counter() - begun))
        right = right and bool((tensor == ranks).all().item())
    return best * 2 * (ranks - 1) / ranks, right
