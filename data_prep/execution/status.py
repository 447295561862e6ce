"""`mose-data status`: the progress of a data set, from one listing of its task files and the content of a few."""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from data_prep.execution.inputs import read_config_of
from data_prep.execution.lease import LeaseRecord, read_lease
from data_prep.execution.markers import in_threads
from data_prep.execution.task_files import array_specification, list_tasks, read_failure
from data_prep.pipeline.task_marker import BadRepository, TaskMarker, marker_path, read_marker
from mose.command import Command
from mose.dataset.manifest import MANIFEST_NAME
from mose.errors import MoseError
from mose.files.storage import storage_path
from mose.files.streams import make_console

# With more finished tasks than this, their rows are estimated from an evenly spread sample of at most this size.
_READ_MARKERS = 512
_NAMED_FAILURES = 20
_NAMED_RUNNING = 5
NOT_COMPLETE = 1


@dataclass(frozen=True)
class Running:
    """A running task: its host, duration and progress at the last heartbeat."""

    task: int
    host: str
    seconds: float
    silent_seconds: float
    """Since the last heartbeat."""
    bytes: int
    """Of text read."""
    rows: int
    """Packed; they come in steps, when a sample of the shuffle buffer is packed."""
    tokens: int
    share: float | None
    """Of its repositories; None if their number is not known."""

    @staticmethod
    def of(lease: LeaseRecord, now: float) -> "Running":
        """The running task of a lease."""
        done, expected = lease.progress, lease.expected_repositories
        return Running(
            task=lease.task,
            host=lease.host,
            # The progress is that of the last heartbeat, so a pace must not count the time since.
            seconds=max(lease.heartbeat - lease.started, 0.0),
            silent_seconds=max(now - lease.heartbeat, 0.0),
            bytes=done.bytes,
            rows=done.rows,
            tokens=done.tokens,
            share=done.repositories / expected if expected else None,
        )

    @property
    def pace(self) -> float:
        """Share of the task per second; bytes per second if the share is not known."""
        return (self.bytes if self.share is None else self.share) / max(self.seconds, 1.0)


@dataclass(frozen=True)
class Status:
    """Progress of a data set."""

    num_tasks: int
    done: int
    running: tuple[Running, ...]
    """The slowest first."""
    failed: dict[int, str]
    """The error of each of the first failed tasks."""
    failed_tasks: tuple[int, ...]
    dead: tuple[int, ...]
    """Started by a process that is gone or has written no heartbeat for two minutes."""
    missing: tuple[int, ...]
    """Neither done, nor running, nor failed, nor dead."""
    rows: int
    """Of finished and running tasks."""
    rows_are_estimated: bool
    rows_per_second: float | None
    """Of the running tasks; None if there is none."""
    seconds_left: float | None
    """At the present pace; None if that is not known."""
    has_manifest: bool
    bad_repositories: tuple[BadRepository, ...] = ()
    """Repositories that finished tasks left out because they cannot be read; of a sample of the tasks if there are many."""

    @property
    def to_run(self) -> tuple[int, ...]:
        """The tasks that have to be started."""
        return tuple(sorted((*self.failed_tasks, *self.dead, *self.missing)))

    @property
    def is_complete(self) -> bool:
        """Whether every task is done."""
        return self.done == self.num_tasks


def status_of(dataset: Path) -> Status:
    """Read the progress of a data set.

    Raises:
        MoseError: the folder is no data set, or a marker cannot be read.
    """
    num_tasks = read_config_of(dataset).num_tasks
    states, now = list_tasks(dataset), time.time()
    done = {task for task in states.done if task < num_tasks}
    leases = [lease for lease in in_threads(lambda task: read_lease(dataset, task), sorted(states.held - done)) if lease]
    running = sorted((Running.of(lease, now) for lease in leases if lease.is_alive(now)), key=lambda task: task.pace)
    alive = {task.task for task in running}
    failed = sorted(states.failed - done - alive)
    dead = sorted({lease.task for lease in leases} - alive - set(failed))
    markers = _markers(dataset, sorted(done))
    rows_per_task = _rows_per_task(markers)
    rows_per_second, seconds_left = _forecast(running, rows_per_task, num_tasks - len(done))
    return Status(
        num_tasks=num_tasks,
        done=len(done),
        running=tuple(running),
        failed={task: _reason(dataset, task) for task in failed[:_NAMED_FAILURES]},
        failed_tasks=tuple(failed),
        dead=tuple(dead),
        missing=tuple(sorted(set(range(num_tasks)) - done - alive - set(failed) - set(dead))),
        rows=round((rows_per_task or 0) * len(done)) + sum(task.rows for task in running),
        rows_are_estimated=len(done) > _READ_MARKERS,
        rows_per_second=rows_per_second,
        seconds_left=seconds_left,
        has_manifest=(dataset / MANIFEST_NAME).is_file(),
        bad_repositories=tuple(bad for marker in markers for bad in marker.bad_repositories),
    )


def _markers(dataset: Path, done: Sequence[int]) -> list[TaskMarker]:
    """The markers of the finished tasks, or of a sample if there are many."""
    step = max(1, -(-len(done) // _READ_MARKERS))
    return [marker for marker in in_threads(lambda task: read_marker(marker_path(dataset, task)), done[::step]) if marker]


def _rows_per_task(markers: Sequence[TaskMarker]) -> float | None:
    """Mean of the finished tasks."""
    return statistics.fmean(sum(shard.rows for shard in marker.shards.values()) for marker in markers) if markers else None


def _forecast(running: Sequence[Running], rows_per_task: float | None, unfinished: int) -> tuple[float | None, float | None]:
    """Rows per second and seconds left, each None if not known."""
    paces = [task.share / task.seconds for task in running if task.share and task.seconds]
    # Tasks without progress so far are assumed to be as fast as the others.
    tasks_per_second = statistics.fmean(paces) * len(running) if paces else None
    seconds_left = None if unfinished else 0.0
    if unfinished and tasks_per_second:
        seconds_left = (unfinished - sum(task.share or 0.0 for task in running)) / tasks_per_second
    if not running:
        return None, seconds_left
    # Rows of running tasks come in steps, so the rows of finished tasks predict better.
    if tasks_per_second and rows_per_task:
        return tasks_per_second * rows_per_task, seconds_left
    return sum(task.rows / task.seconds for task in running if task.seconds), seconds_left


def _reason(dataset: Path, task: int) -> str:
    try:
        failure = read_failure(dataset, task)
    except MoseError as error:
        return str(error)
    if failure is None:
        return "unknown"
    return f"{failure.error} ({failure.host}, {time.strftime('%Y-%m-%d %H:%M', time.localtime(failure.time))})"


def print_status(dataset: Path, status: Status) -> None:
    """Print tables for people, and the next command."""
    console = make_console()
    console.print(_counts(status))
    if status.running:
        console.print(_slowest(status.running[:_NAMED_RUNNING]))
    for task, reason in status.failed.items():
        console.print(f"task {task} failed: {reason}", style="red", soft_wrap=True, markup=False)
    more = len(status.failed_tasks) - len(status.failed)
    if more:
        console.print(f"{more} more failed", style="red")
    for bad in status.bad_repositories[:_NAMED_FAILURES]:
        console.print(f"left out, cannot be read: {bad.name}: {bad.reason}", style="yellow", soft_wrap=True, markup=False)
    console.print(_next_step(dataset, status), soft_wrap=True, markup=False)


def _counts(status: Status) -> Table:
    table = Table("tasks", f"of {status.num_tasks:,}", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    numbers = {"done": status.done, "running": len(status.running), "failed": len(status.failed_tasks)}
    for name, number in {**numbers, "dead": len(status.dead), "missing": len(status.missing)}.items():
        table.add_row(name, f"{number:,}")
    if status.bad_repositories:
        table.add_row("bad repositories", f"{len(status.bad_repositories):,}")
    about = "about " if status.rows_are_estimated else ""
    table.add_row("rows so far", f"{about}{status.rows:,}")
    if status.rows_per_second is not None:
        table.add_row("rows per second", f"{status.rows_per_second:,.0f}")
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
        print(json.dumps({**dataclasses.asdict(status), "array": array_specification(status.to_run)}, indent=1))
    else:
        print_status(dataset, status)
    sys.stdout.flush()
    return 0 if status.is_complete else NOT_COMPLETE


COMMAND = Command("Show the progress of a data set; exit code 0 when all tasks are done, else 1.", _add_status, _status)
