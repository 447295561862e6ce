"""Where ranks listen: on the address that the launcher names, and nowhere when a process is alone; a port that is taken."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from mose.errors import MoseError
from pretrain.config.run import Layout, ParallelConfig, PretrainConfig
from pretrain.parallel import engine, launch
from pretrain.parallel.launch import _listener, cuda_environment, initialize_parallel, leave_parallel, open_store
from tests.distributed import RankPools, free_port

LISTENS = "0A"
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def listening_addresses() -> set[str]:
    """Addresses on which this process listens, as the kernel writes them."""
    # A descriptor of the listing itself is gone when it is looked at.
    sockets = {os.path.realpath(path).rpartition("/")[2] for path in Path("/proc/self/fd").iterdir()}
    inodes = {link.removeprefix("socket:[").rstrip("]") for link in sockets if link.startswith("socket:[")}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]]
    return {line[1].partition(":")[0] for line in lines if line[3] == LISTENS and line[9] in inodes}


def join_and_look() -> tuple[int, set[str]]:
    context = initialize_parallel(PretrainConfig())
    total = int(context.sum_over_data(torch.ones(1)).item())
    found = listening_addresses()
    leave_parallel()
    return total, found


def test_ranks_of_one_machine_listen_on_loopback_only(pools: RankPools) -> None:
    for total, found in pools.of(2).run(join_and_look):
        assert total == 2
        assert found <= LOOPBACK
    assert any(found for _, found in pools.of(2).run(join_and_look))


def test_a_process_alone_opens_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "chosen")
    before = listening_addresses()
    assert type(open_store(10)).__name__ == "HashStore"
    assert listening_addresses() == before
    assert os.environ["GLOO_SOCKET_IFNAME"] == "chosen"
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert open_store(10) is None


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MoseError, match=f"MASTER_PORT: {port} of 127.0.0.1: Address already in use; expected a free port"):
            _listener("127.0.0.1", port)


def test_an_address_of_another_machine_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service's address in front of rank 0, or a machine whose own name is a loopback address only to itself."""
    assert _listener("192.0.2.1", free_port()) is None
    resolved = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 1))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: resolved)
    assert _listener("node7", 1) is None


def test_a_free_port_goes_to_nobody_else_until_a_rank_listens() -> None:
    port = free_port()
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("127.0.0.1", port))
    descriptor = _listener("127.0.0.1", port)
    assert descriptor is not None
    os.close(descriptor)


NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT")
GPU_NAMES = (*NAMES, "CUDA_DEVICE_MAX_CONNECTIONS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process of 512 on a machine whose CUDA is a stub."""
    for name in GPU_NAMES:
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back after the test
        monkeypatch.delenv(name)
    for name, value in (("RANK", "7"), ("LOCAL_RANK", "3"), ("WORLD_SIZE", "512"), ("MASTER_ADDR", "node"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    return monkeypatch


def start_up(
    machine: pytest.MonkeyPatch, config: PretrainConfig, visible: int
) -> tuple[list[str], tuple[Layout, torch.device, int]]:
    """What `initialize_parallel` does to the process, in its order, and what it builds the context from."""
    happened: list[str] = []

    def set_device(number: int) -> None:
        queues, allocator = (os.environ.get(name) for name in ("CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_ALLOC_CONF"))
        happened.append(f"device {number}, {queues}, {allocator}")

    def init(backend: str, **options: object) -> None:
        assert "device_id" not in options  # it would make every later group a split that all ranks enter
        happened.append(f"{backend} group of {options['world_size']}, device {os.environ['LOCAL_RANK']}")

    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "device_count", lambda: visible)
    machine.setattr(torch.cuda, "set_device", set_device)
    machine.setattr(dist, "is_initialized", lambda: False)
    machine.setattr(dist, "init_process_group", init)
    machine.setattr(dist, "get_world_size", lambda: 512)
    machine.setattr(engine.deepspeed, "init_distributed", lambda **_: happened.append("deepspeed"))
    machine.setattr(launch, "open_store", lambda seconds: None)
    machine.setattr(launch, "build_context", lambda layout, device, seconds: (layout, device, seconds))
    built: Any = initialize_parallel(config)
    return happened, built


@pytest.mark.parametrize(("visible", "index"), [(4, 3), (1, 0)])
@pytest.mark.parametrize("tensor_ranks", [1, 4])
def test_environment_then_device_then_groups(machine: pytest.MonkeyPatch, visible: int, index: int, tensor_ranks: int) -> None:
    """CUDA reads the environment when it first touches the device; NCCL and DeepSpeed take the device that is current."""
    config = PretrainConfig(parallel=ParallelConfig(tensor_parallel_size=tensor_ranks))
    happened, (layout, device, seconds) = start_up(machine, config, visible)
    assert happened == expected_order(index, "1" if tensor_ranks > 1 else None)
    assert (layout.tensor_ranks, device, seconds) == (tensor_ranks, torch.device("cuda", index), 600)


def expected_order(index: int, queues: str | None) -> list[str]:
    return [f"device {index}, {queues}, expandable_segments:True", f"nccl group of 512, device {index}", "deepspeed"]


@pytest.mark.parametrize("planted", ["environment after the device", "group before the device"])
def test_another_order_is_seen(machine: pytest.MonkeyPatch, planted: str) -> None:
    original = launch._device

    def device_first() -> torch.device:
        device = original()
        os.environ.update(cuda_environment(PretrainConfig()))
        return device

    def group_first() -> torch.device:
        engine.join_process_group(10, None)
        return original()

    machine.setattr(launch, "_device", group_first if planted.startswith("group") else device_first)
    if planted.startswith("environment"):
        machine.setattr(launch, "cuda_environment", lambda _: {})
    happened, _ = start_up(machine, PretrainConfig(), visible=4)
    assert happened != expected_order(3, None)


def test_a_fixed_order_of_sums_is_asked_of_torch_and_of_cublas(machine: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    machine.setattr(torch, "use_deterministic_algorithms", asked.append)
    machine.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    machine.setattr(launch, "join_process_group", lambda *_: None)
    machine.setattr(launch, "open_store", lambda seconds: None)
    machine.setattr(dist, "get_world_size", lambda: 512)
    machine.setattr(launch, "build_context", lambda *_: None)
    for name in ("CUBLAS_WORKSPACE_CONFIG", "RANK"):
        machine.setenv(name, os.environ.get(name, ""))
    machine.delenv("CUBLAS_WORKSPACE_CONFIG")
    initialize_parallel(PretrainConfig())
    assert (asked, os.environ.get("CUBLAS_WORKSPACE_CONFIG")) == ([], None)
    initialize_parallel(PretrainConfig(parallel=ParallelConfig(deterministic=True)))
    assert (asked, os.environ["CUBLAS_WORKSPACE_CONFIG"]) == ([True], ":4096:8")
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_a_single_queue_only_where_megatron_overlaps_and_zero_does_not(machine: pytest.MonkeyPatch) -> None:
    parallel = ParallelConfig(tensor_parallel_size=4)
    assert cuda_environment(PretrainConfig(parallel=parallel))["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    overlapped = PretrainConfig(parallel=parallel, deepspeed={"zero_optimization": {"overlap_comm": True}})
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in cuda_environment(overlapped)


def test_the_users_environment_counts_first(machine: pytest.MonkeyPatch) -> None:
    assert set(cuda_environment(PretrainConfig())) == {"PYTORCH_ALLOC_CONF", "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT"}
    machine.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert "PYTORCH_ALLOC_CONF" not in cuda_environment(PretrainConfig())


def test_joining_starts_no_compiler(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(engine.deepspeed.ops, "_probe_compatible_ops", lambda: pytest.fail("compilers are probed"))
    machine.setattr(dist, "is_initialized", lambda: True)
    machine.setattr(engine.deepspeed, "init_distributed", lambda **_: sys.modules["deepspeed.comm.torch"].build_shm_op())
    engine.join_process_group(10)
