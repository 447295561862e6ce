"""Starts the measuring processes of a preflight, by srun or on this machine, and collects what they print within a time limit."""

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import slurm
from cluster.preflight.records import MARK, Measured, read_lines

# Beyond the limit of the processes themselves, which end by it and say where they stood.
GRACE_SECONDS = 10
_END_SECONDS = 10
_POLL_SECONDS = 0.5
_LARGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Process:
    """A command, and what its environment adds to this process's own."""

    words: tuple[str, ...]
    environment: Mapping[str, str]


def measuring_words(program: Sequence[str], folder: Path, gpus_per_node: int, seconds: float) -> list[str]:
    """The command of one measuring process."""
    words = [*program, "preflight", "--measure", "true", "--folder", str(folder), "--gpus_per_node", str(gpus_per_node)]
    return [*words, "--preflight.seconds", f"{seconds:g}"]


def srun_process(measuring: Sequence[str], nodes: int, gpus_per_node: int) -> Process:
    """srun with one measuring process per GPU, or one per node where there is none."""
    tasks = max(1, gpus_per_node)
    words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes * tasks}", f"--ntasks-per-node={tasks}", "--distribution=block"]
    # A process that fails must not take the facts of the others with it.
    words += ["--kill-on-bad-exit=0", "--wait=0"]
    if "SLURM_JOB_ID" in os.environ:
        # The job's own value is meant for one launcher with all cores of the node.
        cores = os.environ.get("SLURM_CPUS_ON_NODE", "")
        words += [f"--cpus-per-task={max(1, int(cores) // tasks)}"] if cores.isdigit() else []
    elif gpus_per_node:
        words += [f"--gpus-per-node={gpus_per_node}"]
    return Process((*words, *measuring), {})


def local_processes(measuring: Sequence[str], gpus_per_node: int) -> list[Process]:
    """One process per GPU of this machine, or one where there is none."""
    tasks, port = max(1, gpus_per_node), _free_port()
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SLURMD_NODENAME": socket.gethostname()}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(tasks)} for rank in range(tasks)]
    return [Process(tuple(measuring), where | rank) for rank in ranks]


def own_program() -> list[str]:
    """The words that run `mose-cluster` with this Python."""
    found = shutil.which("mose-cluster")
    return [found] if found else [sys.executable, "-m", "cluster.cli"]


def collect(processes: Sequence[Process], seconds: float, stop: Callable[[], bool] = lambda: False) -> list[Measured]:
    """What the processes printed until all have ended, `seconds` have passed, or `stop` says so; then all are ended.

    Raises:
        SlurmError: a command is missing on this machine.
    """
    reading, writing = os.pipe()
    started: list[subprocess.Popen[bytes]] = []
    try:
        for process in processes:
            try:
                started.append(_start(process, writing))
            except FileNotFoundError:
                raise slurm.SlurmError(f"{process.words[0]}: not found on this machine") from None
        os.close(writing)
        writing = -1
        return read_lines(_lines(reading, time.monotonic() + seconds, stop))
    finally:
        for running in started:
            _end(running)
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def _start(process: Process, output: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **process.environment}
    # A group of its own, so that all of it can be killed.
    return subprocess.Popen(process.words, env=environment, stdin=subprocess.DEVNULL, stdout=output, start_new_session=True)


def _lines(reading: int, end: float, stop: Callable[[], bool]) -> list[str]:
    """Whole lines with the mark, until the end of the file or the time limit."""
    os.set_blocking(reading, False)
    kept, rest = [], b""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while time.monotonic() < end and not stop():
            if not selector.select(_POLL_SECONDS):
                continue
            if not (part := os.read(reading, _LARGEST_LINE)):
                break
            *whole, rest = (rest + part).split(b"\n")
            kept += [line.decode("utf-8", errors="replace") for line in whole if line.startswith(MARK.encode())]
            # What a library prints without an end of line must not fill the memory.
            rest = rest[-_LARGEST_LINE:]
    return kept


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process; srun passes the signal on to its tasks, and those that do not act on it are killed by SLURM."""
    if process.poll() is not None:
        return
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
        return
    if job := os.environ.get("SLURM_JOB_ID"):
        # Before training a job has no other step.
        with contextlib.suppress(slurm.SlurmError):
            for step in slurm.steps(job):
                slurm.call(["scancel", "--signal=KILL", step])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
            return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
