"""Whether the launcher that started this rank still runs: without it nobody would see how the ranks end, or end them.

A launcher that is killed with SIGKILL, or dies with its shell, sends its ranks no signal. They would train on, hold their devices
and write into the run directory while the user or the scheduler believes that the run has ended.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mose.files.lock import process_start
from pretrain.parallel.stop_signal import StopSignal

INTERVAL_SECONDS = 5.0
LAUNCHER_ENDED = "because its launcher ended"
_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "accelerate")


@dataclass(frozen=True)
class Process:
    """A process of this machine, told apart from later ones of its number by its start time."""

    pid: int
    start: str | None

    @property
    def is_gone(self) -> bool:
        """Whether it has ended."""
        return process_start(self.pid) != self.start


def launcher_processes() -> tuple[Process, ...]:
    """The launcher's processes on this machine, nearest first; none where this process was started without one.

    The parent of a launched rank always belongs to it. Its own ancestors count while their commands are those of a launcher:
    `deepspeed` starts one process per node, which starts the ranks. A shell above them may end, as it does after nohup.
    """
    if not {"RANK", "SLURM_STEP_ID"} & os.environ.keys():
        return ()
    pid = os.getppid()
    found: list[Process] = []
    while pid > 1 and (not found or _is_launcher(pid)):
        found.append(Process(pid, process_start(pid)))
        pid = _parent_of(pid)
    return tuple(found)


def _is_launcher(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    # The interpreter, then its script or -m MODULE; further words may name anything.
    return any(Path(word).name.startswith(_LAUNCHERS) for word in words[:4])


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


class LauncherWatch:
    """Inside its `with` block, a thread asks for a stop when a process of the launcher has ended."""

    def __init__(self, launcher: tuple[Process, ...], stop: StopSignal, interval_seconds: float = INTERVAL_SECONDS):
        self._launcher, self._stop, self._interval = launcher, stop, interval_seconds
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="launcher watch", daemon=True)

    def _watch(self) -> None:
        while not self._leave.wait(self._interval):
            if any(process.is_gone for process in self._launcher):
                self._stop.request(LAUNCHER_ENDED)
                return

    def __enter__(self) -> "LauncherWatch":
        if self._launcher:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave.set()
        if self._launcher:
            self._thread.join()
