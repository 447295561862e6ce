"""Requests to stop, by a signal or the end of the launcher: recorded at once, acted on at the next step by all ranks together.

A handler that stopped at once would end this rank inside a collective, while the signal reaches other ranks later or not at
all, and they would wait until the timeout. So the request of any rank travels with the counts that ranks sum before each step,
all ranks stop before the same step, and they save a checkpoint together.
"""

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from mose.files.lock import process_start

# Schedulers and launchers send these. A launcher may ignore them itself, which its ranks inherit, so they are always handled.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# A terminal sends these: Ctrl-C, and when it closes. nohup and a shell's background jobs ignore them, and that is respected.
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)
BY_SIGNAL = "by a signal"
# A launcher that is killed with SIGKILL, or dies with its shell, sends its ranks no signal. They would train on, hold devices
# and write into the run directory while the user or the scheduler believes that the run has ended.
INTERVAL_SECONDS = 5.0
LAUNCHER_ENDED = "because its launcher ended"
_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "accelerate")


class StopSignal:
    """Inside its `with` block these signals only set `requested`; launchers may send them repeatedly.

    A second Ctrl-C ends the process at once. Python allows signal handlers in the main thread only: in another thread none is
    installed, and only `request` sets `requested`.
    """

    def __init__(self) -> None:
        self.requested = False
        self.reason = BY_SIGNAL
        self._before: dict[signal.Signals, Any] = {}

    def request(self, reason: str) -> None:
        """Ask for a stop, for a reason that completes "stopped ..."; the first one is kept."""
        if not self.requested:
            self.requested, self.reason = True, reason

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.request(BY_SIGNAL)
        if number == signal.SIGINT:
            # The default action, not Python's handler: that runs only when a collective returns, which may be never.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if os.environ.get("RANK", "0") == "0":
                # Not `print`, which may be interrupted inside itself.
                os.write(2, b"Ctrl-C: this step is finished and a checkpoint saved; again: ends at once\n")

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            numbers = [*SIGNALS, *(number for number in TERMINAL_SIGNALS if signal.getsignal(number) != signal.SIG_IGN)]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


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
