"""Processes that compete for a lock, and numbers of processes that have ended."""

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from mose.files.lock import HeldError, Lock

PROCESSES = 8


def dead_pid() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def compete(make_lock: Callable[[], Lock[Any]]) -> list[bool]:
    """Whether each of eight processes gets a lock that all of them try to take at once, the losers first."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(PROCESSES), context.SimpleQueue()

    def take() -> None:
        barrier.wait()
        try:
            with make_lock():
                results.put(True)
                barrier.wait()
        except HeldError:
            results.put(False)
            barrier.wait()

    processes = [context.Process(target=take) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    found = sorted(results.get() for _ in processes)
    for process in processes:
        process.join()
    return found
