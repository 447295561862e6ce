"""Runs one task under its lease: removes what a dead process left of it, packs it, and records a failure."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_prep.execution.inputs import Inputs
from data_prep.execution.lease import Lease, TaskHeldError
from data_prep.execution.markers import is_finished, mended
from data_prep.execution.task_files import failure_path, remove_leftovers, write_failure
from data_prep.filters.filters import KEPT
from data_prep.pipeline.assignment import TaskInputs
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.task import run_task
from data_prep.pipeline.task_marker import TaskMarker, TaskProgress, marker_path
from mose.command import one_line
from mose.errors import MoseError
from mose.files.storage import storage_path


@dataclass(frozen=True)
class TaskRunner:
    """What all tasks of a command share; sent to each worker process."""

    config: PackConfig
    inputs: Inputs

    @property
    def num_workers(self) -> int:
        """Number of worker processes."""
        return self.config.num_workers

    @property
    def folder(self) -> Path:
        """The folder of the data set."""
        return storage_path(self.config.output)

    @property
    def failure_list(self) -> str:
        """Where a person finds the failed tasks, for a message."""
        return "`mose-data status`"

    def is_done(self, task: int, task_inputs: TaskInputs) -> bool:
        """Whether a task is finished and none of the repositories that it left out has been mended.

        Raises:
            MoseError: its marker cannot be read, or has other inputs.
        """
        dataset = self.folder
        if not is_finished(dataset, task, self.inputs):
            return False
        return not mended(dataset, task, task_inputs.refs, self.config.sources)

    def run(self, task: int, task_inputs: TaskInputs, observe: Callable[[TaskProgress], None]) -> None:
        """Run one task unless it is finished; calls `observe` after each repository, and with the totals at the end.

        Raises:
            TaskHeldError: a living process works on it.
            MoseError: it failed; `tasks/task-N.failed.json` says why until it succeeds.
        """
        dataset = self.folder
        with Lease(dataset, task, task_inputs.expected_repositories) as lease:

            def seen(progress: TaskProgress) -> None:
                lease.observe(progress)
                observe(progress)

            # Another process may have finished the task after the caller read its marker and before this lease.
            if not self.is_done(task, task_inputs):
                remove_leftovers(dataset, task)
                if names := mended(dataset, task, task_inputs.refs, self.config.sources):
                    print(f"task {task} is packed again: {', '.join(names[:3])} can be read now", file=sys.stderr, flush=True)
                # A marker of the earlier content would vouch for files that are being replaced.
                marker_path(dataset, task).unlink(missing_ok=True)
                try:
                    marker = run_task(self.config, task, task_inputs.read(self.config.sources), self.inputs.sources, seen)
                except TaskHeldError:
                    raise
                except Exception as error:
                    write_failure(dataset, task, error_line(error))
                    raise
                # The last rows are packed after the last repository, so only the marker counts them.
                seen(_totals(marker))
            failure_path(dataset, task).unlink(missing_ok=True)


def _totals(marker: TaskMarker) -> TaskProgress:
    shards = marker.shards.values()
    rows, tokens = sum(shard.rows for shard in shards), sum(shard.tokens for shard in shards)
    return TaskProgress(marker.repositories, rows, tokens, marker.filters["reasons"][KEPT]["bytes"])


def error_line(error: Exception) -> str:
    """An error as one line; with its type if it is a defect, that is, neither bad input nor an error of the machine."""
    line = one_line(error)
    return line if isinstance(error, (MoseError, OSError)) else f"{type(error).__name__}: {line}"
