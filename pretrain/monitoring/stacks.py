"""The stacks of a rank that hangs: SIGUSR2 writes them into a file, even while the main thread waits in a collective."""

import contextlib
import faulthandler
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from mose.files.atomic_file import named_errors


@contextlib.contextmanager
def stacks_on_request(folder: Path, rank: int, world_size: int) -> Iterator[None]:
    """While the block runs, SIGUSR2 appends the stacks of all threads to `folder`/rank-00000.txt.

    faulthandler writes them from the signal handler itself, without the interpreter: a Python handler would run only when a
    collective returns, which may be never. The file is opened beforehand, since a handler cannot open one. `cluster` reads it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank-{rank:05d}.txt"
    with named_errors(path), path.open("w", encoding="utf-8") as file:
        file.write(f"rank {rank} of {world_size}, host {socket.gethostname()}, process {os.getpid()}\n")
        file.flush()
        faulthandler.register(signal.SIGUSR2, file=file, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(signal.SIGUSR2)
