"""The states of runs for people and for programs: a table, or JSON; and a loop that tells of every change."""

import dataclasses
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.status.read import BAD_STATES, DONE, RunStatus, read_queue, read_status
from mose.errors import MoseError
from mose.files.streams import make_console, table_text

STALL_SECONDS = 300.0
_HOOK_SECONDS = 60


def read_all(paths: Sequence[str], stall_seconds: float = STALL_SECONDS) -> tuple[list[RunStatus], str]:
    """The state of every run, and why SLURM was left out, if it was.

    Raises:
        MoseError: a path is no folder.
    """
    queue, reason = read_queue()
    now = time.time()
    return [read_status(Path(path), queue, now, stall_seconds) for path in paths], reason


def as_plain(statuses: Sequence[RunStatus]) -> list[dict[str, Any]]:
    """The states as JSON holds them, with the goodput and the total time worked out."""
    return [
        {**dataclasses.asdict(one), "goodput": one.time.goodput, "seconds_since_submission": one.time.total} for one in statuses
    ]


def print_statuses(statuses: Sequence[RunStatus], reason: str, as_json: bool) -> None:
    """Print a table of one line per run, or JSON."""
    if as_json:
        print(json.dumps(as_plain(statuses), indent=1))
        return
    from rich.table import Table

    columns = (
        "run",
        "state",
        "step",
        "loss",
        "by exit",
        "tok/s/device",
        "MFU",
        "data wait",
        "goodput",
        "lost to",
        "left",
        "note",
    )
    table = Table(*columns)
    for one in statuses:
        table.add_row(*_cells(one))
    if sys.stdout.isatty():
        make_console(soft_wrap=True).print(table)
    else:
        print(table_text(table), end="")
    if reason:
        print(f"without SLURM's queue: {reason}", file=sys.stderr)
    runs = ",".join(f"{Path(one.run).name}:{one.run}/tensorboard" for one in statuses)
    print(f"tensorboard --logdir_spec {shlex.quote(runs)} --port 6006")


def _cells(one: RunStatus) -> list[str]:
    parts, total = one.time, one.time.total
    lost = [(name, getattr(parts, name)) for name in ("queued", "starting", "repeated")]
    shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in lost if total and seconds / total >= 0.005)
    return [
        one.run,
        one.state,
        f"{one.step:,}" + (f" of {one.max_steps:,}" if one.max_steps else ""),
        _number(one.loss, ".3f"),
        " ".join(f"{name.removeprefix('exit_')}: {loss:.2f}" for name, loss in one.exit_losses.items()),
        _number(one.tokens_per_second, ",.0f"),
        _number(one.utilization, ".1%"),
        _number(one.data_wait, ".1%"),
        _number(parts.goodput, ".1%"),
        shares,
        "" if one.seconds_left is None else duration(one.seconds_left),
        one.note + (f" (start {one.starts})" if one.starts > 1 else ""),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def duration(seconds: float) -> str:
    """A length of time for people: `3 d 4 h`, `2 h 5 min`, `40 s`."""
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest} s"


def exit_code(statuses: Sequence[RunStatus]) -> int:
    """1 if a person should look at a run, else 0."""
    return 1 if any(one.state in BAD_STATES for one in statuses) else 0


@dataclasses.dataclass(frozen=True)
class WatchOptions:
    """How `mose-cluster watch` looks."""

    interval_seconds: float = 30.0
    stall_seconds: float = STALL_SECONDS
    on_change: str = ""
    """Command that is run on every change of a state, with RUN BEFORE AFTER NOTE as further words."""
    log: str = ""
    """File to which a line per change is appended."""

    def __post_init__(self) -> None:
        if self.interval_seconds <= 0:
            raise MoseError(f"interval-seconds: {self.interval_seconds}, expected more than 0")
        if self.on_change and not shlex.split(self.on_change):
            raise MoseError("on-change: is empty, expected a command")


def watch(paths: Sequence[str], options: WatchOptions, sleep: Callable[[float], None] = time.sleep) -> int:
    """Tell of every change until all runs are done; a run that ended otherwise may come back, so it is watched on.

    A hook that fails is reported, and the watch goes on.
    """
    before: dict[str, str] = {}
    while True:
        statuses, reason = read_all(paths, options.stall_seconds)
        for one in statuses:
            if before.get(one.run) != one.state:
                _tell(one, before.get(one.run, ""), options)
                before[one.run] = one.state
        if reason and "" not in before:
            before[""] = reason
            print(f"without SLURM's queue: {reason}", file=sys.stderr, flush=True)
        if all(one.state == DONE for one in statuses):
            return 0
        sleep(options.interval_seconds)


def _tell(one: RunStatus, before: str, options: WatchOptions) -> None:
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    line = f"{when} {one.run}: {before or 'first look'} -> {one.state}, step {one.step:,}{f': {one.note}' if one.note else ''}"
    print(line, flush=True)
    if options.log:
        with Path(options.log).open("a", encoding="utf-8") as file:
            file.write(" ".join(line.split()) + "\n")
    if options.on_change:
        words = [*shlex.split(options.on_change), one.run, before, one.state, one.note]
        try:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, timeout=_HOOK_SECONDS, check=False)
            failure = f"exit code {done.returncode}" if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            failure = " ".join(str(error).split())
        if failure:
            print(f"on-change: {words[0]}: {failure}", file=sys.stderr, flush=True)
