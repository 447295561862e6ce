"""Signals as requests to stop: recorded on arrival, acted on at the next step by all ranks together.

A handler that stopped at once would end this rank inside a collective, while the signal reaches other ranks later or not at
all, and they would wait until the timeout. So the request of any rank travels with the counts that ranks sum before each step,
all ranks stop before the same step, and they save a checkpoint together.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# Schedulers and launchers send these. A launcher may ignore them itself, which its ranks inherit, so they are always handled.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# A terminal sends these: Ctrl-C, and when it closes. nohup and a shell's background jobs ignore them, and that is respected.
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)
BY_SIGNAL = "by a signal"


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
