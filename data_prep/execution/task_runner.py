"""One task as a process of an array or of a pool does it: claimed, cleared of what a dead process left, packed, accounted for."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.execution.inputs import Inputs
from data_prep.execution.lease import Claim, TaskTakenError
from data_prep.execution.markers import is_finished
from data_prep.execution.task_files import failure_path, remove_leftovers, write_failure
from data_prep.pipeline.assignment import Share
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.task import TaskProgress, run_task
from mose.command import one_line
from mose.errors import MoseError
from mose.files.storage import storage_path


@dataclass(frozen=True)
class Job:
    """What all tasks of a run share; sent to each worker."""

    config: PackConfig
    inputs: Inputs

    def run(self, task: int, share: Share, observe: Callable[[TaskProgress], None]) -> None:
        """Do one task, unless another process has finished it by now; calls `observe` as it goes on, and with all at the end.

        Raises:
            TaskTakenError: a living process works on it.
            MoseError: it failed; `tasks/task-N.failed.json` says why until it succeeds.
        """
        dataset = storage_path(self.config.output)

        def seen(progress: TaskProgress) -> None:
            claim.observe(progress)
            observe(progress)

        with Claim(dataset, task, share.expected_repositories) as claim:
            # Another process may have finished it between the look at its marker and this claim.
            if not is_finished(dataset, task, self.inputs):
                remove_leftovers(dataset, task)
                self._pack(task, share, seen)
            failure_path(dataset, task).unlink(missing_ok=True)

    def _pack(self, task: int, share: Share, observe: Callable[[TaskProgress], None]) -> None:
        latest = TaskProgress(0, 0, 0, 0)

        def seen(progress: TaskProgress) -> None:
            nonlocal latest
            latest = progress
            observe(progress)

        try:
            result = run_task(self.config, task, share.read(self.config.sources), self.inputs.sources, seen)
        except TaskTakenError:
            raise
        except Exception as error:
            write_failure(storage_path(self.config.output), task, told(error))
            raise
        # The last rows are written when every repository has been read.
        entries = result.shards.values()
        rows, tokens = sum(entry.rows for entry in entries), sum(entry.tokens for entry in entries)
        observe(dataclasses.replace(latest, rows=rows, tokens=tokens))


def told(error: Exception) -> str:
    """An error as one line; one that is neither bad input nor the machine's carries its type, because it is a defect."""
    line = one_line(error)
    return line if isinstance(error, (MoseError, OSError)) else f"{type(error).__name__}: {line}"
