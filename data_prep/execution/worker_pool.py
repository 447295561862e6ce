"""Runs the missing tasks of a data set in this process or in worker processes; a failed task does not stop the others.

The pool is our own because `concurrent.futures.ProcessPoolExecutor` gives up all workers when one is killed, without a word on
which task it ran: one task too large for the memory would end a run of hundreds. Nor do its workers end when the command is
killed.
"""

import contextlib
import functools
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Protocol

from data_prep.execution.lease import TaskHeldError
from data_prep.execution.progress import PackingMeter
from data_prep.execution.task_files import write_failure
from data_prep.execution.task_runner import error_line
from data_prep.pipeline.task_marker import TaskProgress
from mose.errors import MoseError

# Successive failures without a success between them have a common cause, such as a full disk.
_FAILURES_IN_A_ROW = 3
# Interval between attempts at tasks that other processes hold, when nothing else is left to do.
_WAIT_SECONDS = 2.0
# Shortest interval between two reports of a worker, and longest between two updates of the meter.
_REPORT_SECONDS = 1.0


class Runner(Protocol):
    """Runs any one task of a folder; sent to each worker process."""

    @property
    def num_workers(self) -> int:
        """Number of worker processes."""

    @property
    def folder(self) -> Path:
        """The folder whose `tasks` hold leases and failures."""

    @property
    def failure_list(self) -> str:
        """Where a person finds the failed tasks, for a message."""

    def run(self, task: int, task_inputs: Any, observe: Callable[[TaskProgress], None]) -> None:
        """Run one task unless it is finished; raises TaskHeldError if a living process works on it."""


class TaskSource(Protocol):
    """Gives the inputs of each task, which are sent to the process that runs it."""

    def inputs_of(self, task: int) -> Any:
        """The inputs of one task, with the attribute `expected_repositories` (0 if not known)."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended in this run."""

    task: int
    kind: Literal["done", "held", "failed"]
    """`held`: another process works on it."""
    error: str = ""
    """One line, unless done."""


def run_tasks(runner: Runner, assignment: TaskSource, tasks: list[int], meter: PackingMeter) -> None:
    """Run `tasks` with `runner.num_workers` processes.

    Tasks that another command holds are retried at the end until they are done or their process is dead, because this command
    promises a complete data set.

    Raises:
        MoseError: a task failed; the others were run first, unless several failed in a row.
    """
    execute = _in_processes if runner.num_workers > 1 and len(tasks) > 1 else _here
    waiting, failed, in_a_row = deque(tasks), list[Outcome](), 0
    waited_for: set[int] = set()

    def next_tasks() -> Iterator[int]:
        while waiting and in_a_row < _FAILURES_IN_A_ROW:
            yield waiting.popleft()

    while waiting and in_a_row < _FAILURES_IN_A_ROW:
        held: list[Outcome] = []
        for outcome in execute(runner, assignment, next_tasks(), meter):
            meter.end(outcome.task, is_done=outcome.kind == "done")
            held += [outcome] if outcome.kind == "held" else []
            failed += [outcome] if outcome.kind == "failed" else []
            in_a_row = in_a_row + 1 if outcome.kind == "failed" else 0
        if held and not waiting:
            if waited_for != {outcome.task for outcome in held}:
                meter.say(f"waiting for tasks of other commands: {len(held)}, among them {held[0].error}")
            waited_for = {outcome.task for outcome in held}
            time.sleep(_WAIT_SECONDS)
        waiting.extend(outcome.task for outcome in held)
    if failed:
        more = f" (and {len(failed) - 1} more tasks failed; {runner.failure_list} lists them)" if len(failed) > 1 else ""
        raise MoseError(failed[0].error + more)


def _here(runner: Runner, assignment: TaskSource, tasks: Iterator[int], meter: PackingMeter) -> Iterator[Outcome]:
    for task in tasks:
        task_inputs = assignment.inputs_of(task)
        meter.expect(task, task_inputs.expected_repositories)
        yield _attempt(runner, task, task_inputs, functools.partial(meter.update, task))


def _attempt(runner: Runner, task: int, task_inputs: Any, observe: Callable[[TaskProgress], None]) -> Outcome:
    try:
        runner.run(task, task_inputs, observe)
    except TaskHeldError as error:
        return Outcome(task, "held", error_line(error))
    except (MoseError, OSError) as error:
        return Outcome(task, "failed", error_line(error))
    return Outcome(task, "done")


def _in_processes(runner: Runner, assignment: TaskSource, tasks: Iterator[int], meter: PackingMeter) -> Iterator[Outcome]:
    idle: list[_Worker] = []
    busy: dict[object, _Worker] = {}
    try:
        while True:
            while len(busy) < runner.num_workers and (task := next(tasks, None)) is not None:
                task_inputs = assignment.inputs_of(task)
                meter.expect(task, task_inputs.expected_repositories)
                worker = idle.pop() if idle else _Worker(runner)
                busy[worker.connection] = worker
                worker.start(task, task_inputs)
            if not busy:
                return
            for connection in wait([worker.connection for worker in busy.values()], _REPORT_SECONDS):
                worker = busy[connection]
                message = worker.receive()
                if isinstance(message, TaskProgress):
                    meter.update(worker.task, message)
                    continue
                del busy[connection]
                idle += [worker] if worker.is_alive() else []
                yield message
            meter.tick()
    finally:
        for worker in (*busy.values(), *idle):
            worker.stop()


class _Worker:
    """A process that runs one task after another, seen from the command that started it."""

    def __init__(self, runner: Runner):
        # Spawned, because a forked child would share the threads and open files of pyarrow and fsspec.
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.task = -1
        self._dataset = runner.folder
        self._process = context.Process(target=_work, args=(theirs, runner), daemon=True)
        self._process.start()
        # Only the worker may keep its end open, so that its death closes the connection.
        theirs.close()

    def start(self, task: int, task_inputs: Any) -> None:
        """Start a task."""
        self.task = task
        # Sending to a worker that was just killed fails; `receive` reports it.
        with contextlib.suppress(OSError):
            self.connection.send((task, task_inputs))

    def receive(self) -> TaskProgress | Outcome:
        """The next message of the worker; a failure if it was killed."""
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
        """Whether it can run another task."""
        return self._process.is_alive()

    def stop(self) -> None:
        """End the process, even in the middle of a task."""
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _work(connection: Connection, runner: Runner) -> None:
    """Run tasks as they come, until the command closes the connection or dies."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # Ctrl-C reaches the whole process group; the command ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task, task_inputs = connection.recv()
        except EOFError:
            return
        report = _Report(connection)
        try:
            outcome = _attempt(runner, task, task_inputs, report.observe)
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome(task, "failed", f"task {task}: {error_line(error)}: a defect, its traceback is above")
        report.send()
        connection.send(outcome)


class _Report:
    """Sends the progress of a worker's task to the command, at most once per interval."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._latest = TaskProgress()
        self._due = 0.0

    def observe(self, progress: TaskProgress) -> None:
        """Send the progress unless another was sent within the interval."""
        self._latest = progress
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _REPORT_SECONDS
            self.send()

    def send(self) -> None:
        """Send the latest progress."""
        try:
            self._connection.send(self._latest)
        except OSError:
            os._exit(1)  # The command was killed. Raised here, the error would count as a failure of the task.


def _exit_with_parent() -> None:
    """End this process when the command is killed: the kernel does not end the children of a killed process."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
