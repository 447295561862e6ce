"""Shows the progress of `mose-data pack`: a bar on a terminal, elsewhere one line per interval."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from data_prep.console import INTERVAL_SECONDS
from data_prep.pipeline.task_marker import TaskProgress
from mose.files.streams import make_console, progress_bar


class PackingMeter:
    """Sums the progress of running tasks and of tasks that this command finished, and shows it."""

    def __init__(self, total_tasks: int, done_tasks: int, bar: Progress | None, title: str = "packing"):
        self._title = title
        self._total, self._done, self._bar = total_tasks, done_tasks, bar
        self._began = time.monotonic()
        self._due = self._began + INTERVAL_SECONDS
        self._running: dict[int, TaskProgress] = {}
        self._repositories: dict[int, int] = {}
        self._ended = TaskProgress()
        self._line = bar.add_task("", total=total_tasks, completed=done_tasks) if bar else None

    def expect(self, task: int, repositories: int) -> None:
        """Add a running task with its number of repositories."""
        self._running[task], self._repositories[task] = TaskProgress(), repositories
        self.tick()

    def update(self, task: int, progress: TaskProgress) -> None:
        """Set the progress of a task."""
        self._running[task] = progress
        self.tick()

    def end(self, task: int, *, is_done: bool) -> None:
        """Remove a running task; its progress only counts if it is done."""
        progress = self._running.pop(task, None)
        if is_done:
            self._done += 1
            self._ended = _sum([self._ended, progress or TaskProgress()])
        self.tick()

    def tick(self) -> None:
        """Update the bar, or print a line if the interval is over."""
        if self._bar and self._line is not None:
            self._bar.update(self._line, completed=self._completed(), description=self.text())
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + INTERVAL_SECONDS
            self.say(self.text())

    def say(self, line: str) -> None:
        """Show a message."""
        if self._bar:
            self._bar.console.print(line, highlight=False)
        else:
            print(f"{self._title}: {line}", file=sys.stderr, flush=True)

    def text(self) -> str:
        """Counts of tasks, text, rows and tokens, with rates since the command started.

        Rows and tokens grow in steps, when a sample of the shuffle buffer is packed; text grows when it is read.
        """
        total, seconds = self._total_progress()
        tasks = f"{self._done:,} of {self._total:,} tasks done, {len(self._running)} under way"
        rows = f"{total.rows:,} rows ({total.rows / seconds:,.0f}/s), {total.tokens:,} tokens ({total.tokens / seconds:,.0f}/s)"
        return f"{tasks}; {total.bytes / 1e6:,.0f} MB of text ({total.bytes / 1e6 / seconds:,.1f} MB/s), {rows}"

    def _total_progress(self) -> tuple[TaskProgress, float]:
        """Progress of all tasks since the command started, and the seconds since then."""
        return _sum([self._ended, *self._running.values()]), max(time.monotonic() - self._began, 1e-3)

    def _completed(self) -> float:
        """Number of finished tasks, plus the finished shares of running tasks."""
        shares = [done.repositories / max(self._repositories.get(task, 0), 1) for task, done in self._running.items()]
        return self._done + sum(min(share, 1.0) for share in shares)


def _sum(parts: list[TaskProgress]) -> TaskProgress:
    return TaskProgress(*(sum(values) for values in zip(*map(dataclasses.astuple, parts), strict=True)))


@contextlib.contextmanager
def show_packing(
    total_tasks: int, done_tasks: int, title: str = "packing", kind: type[PackingMeter] = PackingMeter
) -> Iterator[PackingMeter]:
    """Show the packing of a data set, or other work of many tasks, on standard error while the block runs."""
    if not sys.stderr.isatty():
        yield kind(total_tasks, done_tasks, None, title)
        return
    columns = (TextColumn(title), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with progress_bar(*columns, console=make_console(stderr=True), transient=True) as bar:
        yield kind(total_tasks, done_tasks, bar, title)
