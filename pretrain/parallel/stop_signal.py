"""SIGTERM and SIGUSR1 as requests to stop: recorded on arrival, acted on at the next step by all ranks together.

A handler that stopped at once would end this rank inside a collective, while the signal reaches other ranks later or not at
all, and they would wait until the timeout. So the request of any rank travels with the counts that ranks sum before each step,
all ranks stop before the same step, and they save a checkpoint together.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """Inside its `with` block the two signals only set `requested`; launchers may send them repeatedly.

    Python allows signal handlers in the main thread only: in another thread none is installed, and `requested` stays False.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
