"""`mose-data status`: how far a data set is, from one listing of its tasks' files and a few of them read."""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from data_prep.execution.inputs import read_config_of
from data_prep.execution.lease import ClaimRecord, read_claim
from data_prep.execution.markers import in_threads
from data_prep.execution.task_files import Failure, array_specification, list_tasks, read_failure
from data_prep.pipeline.task import TaskResult, marker_path, read_marker
from mose.command import Command
from mose.dataset.manifest import MANIFEST_NAME
from mose.errors import MoseError
from mose.files.storage import storage_path

# With more finished tasks than this, their rows are estimated from as many of them, evenly spread.
_READ_MARKERS = 512
_NAMED_FAILURES = 20
_NAMED_RUNNING = 5
NOT_COMPLETE = 1


@dataclass(frozen=True)
class Running:
    """A task under way: who, for how long, and how far."""

    task: int
    host: str
    seconds: float
    silent_seconds: float
    """Since the last sign of life."""
    bytes: int
    """Of text read."""
    rows: int
    """Written; they come in lumps, when a pool of text is full."""
    tokens: int
    share: float | None
    """Of its repositories; None where their number is not known."""


@dataclass(frozen=True)
class Status:
    """How far a data set is."""

    num_tasks: int
    done: int
    running: tuple[Running, ...]
    """The slowest first."""
    failed: dict[int, str]
    """The first of them by number, with the error of each."""
    failed_tasks: tuple[int, ...]
    dead: tuple[int, ...]
    """Begun by a process that is gone or gave no sign of life for two minutes."""
    missing: tuple[int, ...]
    """Neither done, nor running, nor failed, nor dead."""
    rows: int
    """Of tasks done and under way."""
    rows_are_estimated: bool
    rows_per_second: float | None
    """Of the tasks under way; None while none is."""
    seconds_left: float | None
    """At the present pace; None where nothing tells."""
    has_manifest: bool

    @property
    def to_run(self) -> tuple[int, ...]:
        """The tasks that somebody has to start."""
        return tuple(sorted((*self.failed_tasks, *self.dead, *self.missing)))

    @property
    def is_complete(self) -> bool:
        """Whether every task is done."""
        return self.done == self.num_tasks


def status_of(dataset: Path) -> Status:
    """Look at a data set that was begun.

    Raises:
        MoseError: it was not, or a marker cannot be read.
    """
    num_tasks = read_config_of(dataset).num_tasks
    states, now = list_tasks(dataset), time.time()
    done = {task for task in states.done if task < num_tasks}
    claims = [claim for claim in in_threads(lambda task: read_claim(dataset, task), sorted(states.claimed - done)) if claim]
    alive = [claim for claim in claims if claim.is_alive(now)]
    under_way = {claim.task for claim in alive}
    failed = sorted(states.failed - done - under_way)
    dead = sorted({claim.task for claim in claims} - under_way - set(failed))
    rows_of_a_task = _rows_of_a_task(dataset, sorted(done))
    running = sorted((_running(claim, now) for claim in alive), key=_pace)
    pace = _tasks_per_second(running)
    return Status(
        num_tasks=num_tasks,
        done=len(done),
        running=tuple(running),
        failed={task: _reason(dataset, task) for task in failed[:_NAMED_FAILURES]},
        failed_tasks=tuple(failed),
        dead=tuple(dead),
        missing=tuple(sorted(set(range(num_tasks)) - done - under_way - set(failed) - set(dead))),
        rows=round((rows_of_a_task or 0) * len(done)) + sum(task.rows for task in running),
        rows_are_estimated=len(done) > _READ_MARKERS,
        rows_per_second=_rows_per_second(running, rows_of_a_task, pace),
        seconds_left=_seconds_left(num_tasks - len(done), running, pace),
        has_manifest=(dataset / MANIFEST_NAME).is_file(),
    )


def _rows_of_a_task(dataset: Path, done: Sequence[int]) -> float | None:
    """Mean over the finished tasks, or over some of them where they are many."""
    step = max(1, -(-len(done) // _READ_MARKERS))
    found = [result for result in in_threads(lambda task: read_marker(marker_path(dataset, task)), done[::step]) if result]
    return statistics.fmean(_rows(result) for result in found) if found else None


def _rows(result: TaskResult) -> int:
    return sum(entry.rows for entry in result.shards.values())


def _running(claim: ClaimRecord, now: float) -> Running:
    expected, progress = claim.expected_repositories, claim.progress
    # Progress was true at the last heartbeat, not now.
    seconds = max(claim.heartbeat - claim.started, 0.0)
    share = progress.repositories / expected if expected else None
    silent = max(now - claim.heartbeat, 0.0)
    return Running(claim.task, claim.host, seconds, silent, progress.bytes, progress.rows, progress.tokens, share)


def _pace(task: Running) -> float:
    """Share of the task a second; bytes a second where the share is not known."""
    return (task.bytes if task.share is None else task.share) / max(task.seconds, 1.0)


def _tasks_per_second(running: Sequence[Running]) -> float | None:
    shares = [task.share / task.seconds for task in running if task.share and task.seconds]
    # Those that have said nothing yet go as fast as the others.
    return statistics.fmean(shares) * len(running) if shares else None


def _rows_per_second(running: Sequence[Running], rows_of_a_task: float | None, pace: float | None) -> float | None:
    """Rows come in lumps, so finished tasks tell more than the rows of those under way."""
    if not running:
        return None
    if pace and rows_of_a_task:
        return pace * rows_of_a_task
    return sum(task.rows / task.seconds for task in running if task.seconds)


def _seconds_left(unfinished: int, running: Sequence[Running], pace: float | None) -> float | None:
    if not unfinished:
        return 0.0
    return (unfinished - sum(task.share or 0.0 for task in running)) / pace if pace else None


def _reason(dataset: Path, task: int) -> str:
    try:
        failure = read_failure(dataset, task)
    except MoseError as error:
        return str(error)
    return _dated(failure) if failure else "not told"


def _dated(failure: Failure) -> str:
    return f"{failure.error} ({failure.host}, {time.strftime('%Y-%m-%d %H:%M', time.localtime(failure.time))})"


def print_status(dataset: Path, status: Status) -> None:
    """Tables for people, and the command that comes next."""
    console = Console(highlight=False)
    console.print(_counts(status))
    if status.running:
        console.print(_slowest(status.running[:_NAMED_RUNNING]))
    for task, reason in status.failed.items():
        console.print(f"task {task} failed: {reason}", style="red", soft_wrap=True, markup=False)
    more = len(status.failed_tasks) - len(status.failed)
    if more:
        console.print(f"{more} more failed", style="red")
    console.print(_next_step(dataset, status), soft_wrap=True, markup=False)


def _counts(status: Status) -> Table:
    table = Table("tasks", f"of {status.num_tasks:,}", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    numbers = {"done": status.done, "running": len(status.running), "failed": len(status.failed_tasks)}
    for name, number in {**numbers, "dead": len(status.dead), "missing": len(status.missing)}.items():
        table.add_row(name, f"{number:,}")
    about = "about " if status.rows_are_estimated else ""
    table.add_row("rows so far", f"{about}{status.rows:,}")
    if status.rows_per_second is not None:
        table.add_row("rows a second", f"{status.rows_per_second:,.0f}")
    if status.running:
        table.add_row("estimated end", _end(status.seconds_left))
    return table


def _end(seconds: float | None) -> str:
    if seconds is None:
        return "not known yet"
    hours, rest = divmod(round(seconds), 3600)
    return (
        f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(time.time() + seconds))}, in {hours}:{rest // 60:02d}:{rest % 60:02d}"
    )


def _slowest(running: Sequence[Running]) -> Table:
    table = Table("slowest", "host", "minutes", "silent s", "MB read", "rows", "tokens", "done", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for task in running:
        share = "-" if task.share is None else f"{task.share:.0%}"
        times = (f"{task.seconds / 60:.1f}", f"{task.silent_seconds:.0f}", f"{task.bytes / 1e6:,.0f}")
        table.add_row(str(task.task), task.host, *times, f"{task.rows:,}", f"{task.tokens:,}", share)
    return table


def _next_step(dataset: Path, status: Status) -> str:
    if status.is_complete:
        return "complete" if status.has_manifest else f"every task is done; next: mose-data finish {dataset}"
    if status.to_run:
        return f"to be run: --array={array_specification(status.to_run)}"
    return "every task is done or running"


def _as_json(status: Status) -> str:
    values: dict[str, Any] = dataclasses.asdict(status)
    values["array"] = array_specification(status.to_run)
    return json.dumps(values, indent=1)


def _add_status(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", type=str, help="Folder or URL of the data set.")
    parser.add_argument("--json", action="store_true", help="Print everything as one JSON object.")
    parser.add_argument(
        "--missing",
        action="store_true",
        help="Print only the tasks that are neither done nor running, as `sbatch --array` takes them; empty and exit code 0 "
        "if there is none.",
    )


def _status(parsed: Namespace) -> int:
    dataset = storage_path(parsed.dataset)
    status = status_of(dataset)
    if parsed.missing:
        print(array_specification(status.to_run))
    elif parsed.json:
        print(_as_json(status))
    else:
        print_status(dataset, status)
    sys.stdout.flush()
    return 0 if status.is_complete else NOT_COMPLETE


COMMAND = Command("Say how far the tasks of a data set are; exit code 0 when all are done, else 1.", _add_status, _status)
