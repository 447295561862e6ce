"""Where ranks listen: on the address that the launcher names, and nowhere when a process is alone; a port that is taken."""

import os
import socket
from pathlib import Path

import pytest

from mose.errors import MoseError
from pretrain.config.run import PretrainConfig
from pretrain.parallel.launch import _listener, initialize_parallel, leave_parallel, open_store
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
    total = int(context.sum_over_data(__import__("torch").ones(1)).item())
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
