"""The lease of a task: one process holds it and renews it with a heartbeat; others take it over when the heartbeat stops.

A lease only saves work. The bytes of a task are the same whoever runs it, and every file appears by a rename from a name of its
own, so two processes that run one task by mistake do no harm. The file and its protocol are those of `mose.files.lock`.
"""

import dataclasses
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from data_prep.execution.task_files import lease_path
from data_prep.pipeline.task_marker import TaskProgress
from mose.files.lock import DEAD_AFTER_SECONDS, HeldError, Holder, Lock, read_holder


class TaskHeldError(HeldError):
    """Another living process works on the task."""


@dataclass(frozen=True)
class LeaseRecord(Holder):
    """Content of a lease's file."""

    task: int = 0
    expected_repositories: int = 0
    """Repositories of the task; 0 if not known."""
    progress: TaskProgress = field(default_factory=TaskProgress)

    def is_alive(self, now: float) -> bool:
        """As `Holder.is_alive`, but a process that wrote no heartbeat counts as dead on this machine, too: a second one may
        run its task without harm, and a stuck one would hold it for ever."""
        return now - self.heartbeat <= DEAD_AFTER_SECONDS and super().is_alive(now)


def read_lease(dataset: Path, task: int) -> LeaseRecord | None:
    """The lease of a task; None if there is none. Of a damaged file, see `mose.files.lock.read_holder`."""
    record = read_holder(lease_path(dataset, task), LeaseRecord)
    return None if record is None else dataclasses.replace(record, task=task)


class Lease(Lock[LeaseRecord]):
    """Holds a task while the block runs; a thread writes the heartbeat."""

    error = TaskHeldError

    def __init__(self, dataset: Path, task: int, expected_repositories: int = 0):
        record = LeaseRecord.of_this_process(task=task, expected_repositories=expected_repositories)
        super().__init__(lease_path(dataset, task), f"task {task}", "one process per task", record)
        self._progress = TaskProgress()
        self._restore_signal: Callable[[], object] = lambda: None

    def __enter__(self) -> Self:
        """Take the lease.

        Raises:
            TaskHeldError: a living process holds it.
        """
        # Before the lease is there: a signal between the two would leave it behind.
        self._restore_signal = _on_terminate(self._terminate)
        try:
            return super().__enter__()
        except BaseException:
            self._restore_signal()
            raise

    def __exit__(self, *error: Any) -> None:
        self._restore_signal()
        super().__exit__(*error)

    def observe(self, progress: TaskProgress) -> None:
        """Set the progress that the next heartbeat writes.

        Raises:
            TaskHeldError: another process took the task over because this one wrote no heartbeat.
        """
        self._progress = progress
        self.check()

    def _renewed(self) -> LeaseRecord:
        return dataclasses.replace(super()._renewed(), progress=self._progress)

    def _terminate(self) -> None:
        """End the process at once, as a kill would, but release the lease so that nobody waits for its heartbeat."""
        self._ended.set()
        self._release()
        os._exit(128 + signal.SIGTERM)


def _on_terminate(terminate: Callable[[], None]) -> Callable[[], object]:
    """Call `terminate` at SIGTERM, which schedulers send at the time limit; returns a function that restores the old handler."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    previous = signal.signal(signal.SIGTERM, lambda number, frame: terminate())
    return lambda: signal.signal(signal.SIGTERM, previous)
