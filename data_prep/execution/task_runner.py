"""Runs one task under its lease: removes what a dead process left of it, packs it, and records a failure."""

from collections.abc import Callable
from dataclasses import dataclass

from data_prep.execution.inputs import Inputs
from data_prep.execution.lease import Lease, TaskHeldError
from data_prep.execution.markers import is_finished
from data_prep.execution.task_files import failure_path, remove_leftovers, write_failure
from data_prep.filters.filters import KEPT
from data_prep.pipeline.assignment import TaskInputs
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.task import TaskProgress, run_task
from data_prep.pipeline.task_marker import TaskMarker
from mose.command import one_line
from mose.errors import MoseError
from mose.files.storage import storage_path


@dataclass(frozen=True)
class TaskRunner:
    """What all tasks of a command share; sent to each worker process."""

    config: PackConfig
    inputs: Inputs

    def run(self, task: int, task_inputs: TaskInputs, observe: Callable[[TaskProgress], None]) -> None:
        """Run one task unless it is finished; calls `observe` after each repository, and with the totals at the end.

        Raises:
            TaskHeldError: a living process works on it.
            MoseError: it failed; `tasks/task-N.failed.json` says why until it succeeds.
        """
        dataset = storage_path(self.config.output)
        with Lease(dataset, task, task_inputs.expected_repositories) as lease:

            def seen(progress: TaskProgress) -> None:
                lease.observe(progress)
                observe(progress)

            # Another process may have finished the task after the caller read its marker and before this lease.
            if not is_finished(dataset, task, self.inputs):
                remove_leftovers(dataset, task)
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
