"""The missing tasks of a data set, one after another or in local processes; a task that fails does not stop the others."""

import contextlib
import functools
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Literal

from data_prep.execution.lease import TaskTakenError
from data_prep.execution.progress import PackingMeter
from data_prep.execution.task_files import write_failure
from data_prep.execution.task_runner import Job, told
from data_prep.pipeline.assignment import Deal, Share
from data_prep.pipeline.task import TaskProgress
from mose.errors import MoseError
from mose.files.storage import storage_path

# So many failures with no success between them are no accident of one repository: a full disk, say.
_FAILURES_IN_A_ROW = 3
# How often a task that another process holds is looked at again, when nothing else is left to do.
_WAIT_SECONDS = 2.0
# A worker says how far it is at most this often; the meter is also looked at this often.
_REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a task ended in this run."""

    task: int
    kind: Literal["done", "taken", "failed"]
    """`taken`: another process works on it."""
    error: str = ""
    """One line, unless done."""


def run_tasks(job: Job, deal: Deal, tasks: list[int], meter: PackingMeter) -> None:
    """Do `tasks` with `job.config.num_workers` processes.

    A task that another command works on is left to it, and looked at again when nothing else is left, until it is done or its
    process is dead: this command promises a complete data set.

    Raises:
        MoseError: a task failed; the others were done first, unless several failed in a row.
    """
    execute = _in_processes if job.config.num_workers > 1 and len(tasks) > 1 else _here
    waiting, failed, in_a_row = deque(tasks), list[Outcome](), 0
    waited_for: set[int] = set()

    def deal_out() -> Iterator[int]:
        while waiting and in_a_row < _FAILURES_IN_A_ROW:
            yield waiting.popleft()

    while waiting and in_a_row < _FAILURES_IN_A_ROW:
        taken: list[Outcome] = []
        for outcome in execute(job, deal, deal_out(), meter):
            meter.end(outcome.task, is_done=outcome.kind == "done")
            taken += [outcome] if outcome.kind == "taken" else []
            failed += [outcome] if outcome.kind == "failed" else []
            in_a_row = in_a_row + 1 if outcome.kind == "failed" else 0
        if taken and not waiting:
            if waited_for != {outcome.task for outcome in taken}:
                meter.say(f"waiting for tasks of other commands: {len(taken)}, among them {taken[0].error}")
            waited_for = {outcome.task for outcome in taken}
            time.sleep(_WAIT_SECONDS)
        waiting.extend(outcome.task for outcome in taken)
    if failed:
        more = f" (and {len(failed) - 1} more tasks failed; `mose-data status` lists them)" if len(failed) > 1 else ""
        raise MoseError(failed[0].error + more)


def _here(job: Job, deal: Deal, tasks: Iterator[int], meter: PackingMeter) -> Iterator[Outcome]:
    for task in tasks:
        share = deal.share(task)
        meter.expect(task, share.expected_repositories)
        try:
            job.run(task, share, functools.partial(meter.update, task))
            yield Outcome(task, "done")
        except TaskTakenError as error:
            yield Outcome(task, "taken", told(error))
        except (MoseError, OSError) as error:
            yield Outcome(task, "failed", told(error))


def _in_processes(job: Job, deal: Deal, tasks: Iterator[int], meter: PackingMeter) -> Iterator[Outcome]:
    workers: dict[object, _Worker] = {}

    def give_next(idle: _Worker | None) -> None:
        task = next(tasks, None)
        if task is None:
            if idle:
                idle.stop()
            return
        worker = idle if idle and idle.is_alive() else _Worker(job)
        workers[worker.connection] = worker
        share = deal.share(task)
        meter.expect(task, share.expected_repositories)
        worker.give(task, share)

    try:
        for _ in range(job.config.num_workers):
            give_next(None)
        while workers:
            for connection in wait([worker.connection for worker in workers.values()], _REPORT_SECONDS):
                worker = workers[connection]
                message = worker.receive()
                if isinstance(message, TaskProgress):
                    meter.update(worker.task, message)
                else:
                    del workers[connection]
                    yield message
                    give_next(worker)
            meter.tick()
    finally:
        for worker in workers.values():
            worker.stop()


class _Worker:
    """A process that does one task after another: the parent's side of it."""

    def __init__(self, job: Job):
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.task = -1
        self._dataset = storage_path(job.config.output)
        self._process = context.Process(target=_work, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, task: int, share: Share) -> None:
        """Let it do a task."""
        self.task = task
        # A worker that was killed just now reads nothing; `receive` says so.
        with contextlib.suppress(OSError):
            self.connection.send((task, share))

    def receive(self) -> TaskProgress | Outcome:
        """What it says; that its task failed if it was killed."""
        try:
            message: TaskProgress | Outcome = self.connection.recv()
        except (EOFError, OSError):
            return self._killed()
        return message

    def _killed(self) -> Outcome:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"was killed by signal {-code}, perhaps for its memory" if code < 0 else f"ended with code {code}"
        error = f"num_workers: the worker process of task {self.task} {how}; run the command again to go on, with fewer"
        write_failure(self._dataset, self.task, error)
        return Outcome(self.task, "failed", error)

    def is_alive(self) -> bool:
        """Whether it can do another task."""
        return self._process.is_alive()

    def stop(self) -> None:
        """End it, whatever it does."""
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _work(connection: Connection, job: Job) -> None:
    """What a worker process does: tasks as they come, until the command that started it closes the connection or dies."""
    _follow_parent()
    # Ctrl-C reaches the whole group; the command ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task, share = connection.recv()
        except EOFError:
            return
        connection.send(_attempt(job, task, share, _Reporter(connection)))


def _attempt(job: Job, task: int, share: Share, reporter: "_Reporter") -> Outcome:
    try:
        job.run(task, share, reporter.note)
        reporter.send()
    except TaskTakenError as error:
        return Outcome(task, "taken", told(error))
    except (MoseError, OSError) as error:
        return Outcome(task, "failed", told(error))
    except Exception as error:
        traceback.print_exc()
        return Outcome(task, "failed", f"task {task}: {told(error)}: a defect, its traceback stands above")
    return Outcome(task, "done")


class _Reporter:
    """Tells the command how far this worker's task is, not too often."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._latest = TaskProgress(0, 0, 0, 0)
        self._due = 0.0

    def note(self, progress: TaskProgress) -> None:
        """Send it unless something was sent just now."""
        self._latest = progress
        if time.monotonic() >= self._due:
            self.send()

    def send(self) -> None:
        """Send the latest."""
        self._due = time.monotonic() + _REPORT_SECONDS
        try:
            self._connection.send(self._latest)
        except OSError:
            os._exit(1)  # Nobody listens: the command was killed.


def _follow_parent() -> None:
    """End this worker when the command that started it is killed."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
