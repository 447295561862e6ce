"""Live gloo ranks for tests: started once a session and sent work, since importing deepspeed and megatron takes ~11 s a rank."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

WAIT_SECONDS = 300
# Every run builds process groups anew, and gloo polls each of them a hundred times a second until its process ends: after
# some dozens of runs both cores are busy with nothing else.
RUNS_OF_A_POOL = 16


def free_port() -> int:
    """A port that is this process's until it ends: nobody else is given it before a rank listens on it.

    The socket stays bound and never listens. A rank that sets SO_REUSEADDR, as torch and we do, may then still listen there; a
    port that was only found free could go to any other program during the seconds in which ranks start.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    port = int(held.getsockname()[1])
    held.detach()
    return port


def _serve(rank: int, world_size: int, port: int, pipe: Connection) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    import torch

    torch.set_num_threads(1)
    while (work := pipe.recv()) is not None:
        function, arguments = work
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


class RankPool:
    """`world_size` processes that form one process group and run the same function with the same arguments."""

    def __init__(self, world_size: int):
        context = multiprocessing.get_context("spawn")
        port = free_port()
        self.world_size = world_size
        self.runs = 0
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world_size, port, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function` returned on each rank; raises with a rank's traceback if it failed there."""
        self.runs += 1
        for pipe in self._pipes:
            pipe.send((function, arguments))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(WAIT_SECONDS):
                raise TimeoutError(f"rank {rank} did not answer within {WAIT_SECONDS} s")
            results.append(pipe.recv())
        failures = [f"rank {rank}:\n{value}" for rank, (fine, value) in enumerate(results) if not fine]
        if failures:
            raise RuntimeError("\n".join(failures))
        return [value for _, value in results]

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join(1)
            process.kill()


class RankPools:
    """Pools by world size, started when first asked for."""

    def __init__(self) -> None:
        self._pools: dict[int, RankPool] = {}

    def of(self, world_size: int) -> RankPool:
        """The pool of this many ranks; a fresh one when it has done its runs."""
        if world_size in self._pools and self._pools[world_size].runs >= RUNS_OF_A_POOL:
            self._pools.pop(world_size).close()
        if world_size not in self._pools:
            self._pools[world_size] = RankPool(world_size)
        return self._pools[world_size]

    def close(self) -> None:
        """End all of them."""
        for pool in self._pools.values():
            pool.close()
