"""The completion marker of a task, `DATASET/tasks/task-N.json`, and the reader of the JSON records beside it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mose.dataset.manifest import ShardEntry
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.files.json_file import parse_json
from mose.files.records import from_plain

Record = TypeVar("Record")


@dataclass(frozen=True)
class BadRepository:
    """A repository that was left out because it cannot be read."""

    name: str
    reason: str
    """The error in one line; it names the file."""


@dataclass(frozen=True)
class TaskMarker:
    """Shards that a finished task wrote, their inputs, and counts. Written last: a task without marker is not done."""

    task: int
    config_fingerprint: str
    listing_fingerprint: str
    """Of the names of all repositories, including those of other tasks."""
    shards: dict[str, ShardEntry]
    """By split; a split without rows has no entry."""
    rows: dict[str, dict[str, Any]]
    """`RowCounts` by split, with the number of repositories and tokens by language."""
    filters: dict[str, Any]
    """`FilterCounts`."""
    repositories: int
    unusable_repositories: int
    """Repositories of which no file passed the filters."""
    unusable_examples: list[str] = field(default_factory=list)
    seen: dict[str, dict[str, int]] = field(default_factory=dict)
    """Files and bytes that the sources gave, by kind of source, and the number of files without a wanted suffix: the left side of
    the ledger, whose right side is `filters`. Empty in markers of earlier versions."""
    bad_repositories: list[BadRepository] = field(default_factory=list)
    kept_duplicates: int = 0
    """Files of train that another train repository holds and keeps, too, where the config counts them."""
    kept_copies_of_held_out: int = 0
    """Files of train that a held-out repository holds, too, where the config keeps them."""


def marker_path(dataset: Path, task: int) -> Path:
    """Path of a task's completion marker."""
    return dataset / "tasks" / f"task-{task:06d}.json"


def read_marker(path: Path) -> TaskMarker | None:
    """The marker of a finished task; None if the task has not finished.

    Raises:
        MoseError: the file is not a completion marker.
    """
    build = functools.partial(_marker_of, path)
    return read_record(path, build, "not a completion marker", "remove it, and its task is run again")


def _marker_of(path: Path, values: Any) -> TaskMarker:
    marker = from_plain(TaskMarker, values)
    for split, entry in marker.shards.items():
        entry.require_valid(f"{path}: shards.{split}")
    return marker


def write_marker(dataset: Path, marker: TaskMarker) -> None:
    """Write or replace the marker of a task."""
    write_json(marker_path(dataset, marker.task), dataclasses.asdict(marker))


def read_record(path: Path, build: Callable[[Any], Record], problem: str, remedy: str) -> Record | None:
    """Call `build`, which raises ValueError, with the value of a JSON file; None if the file does not exist.

    Raises:
        MoseError: the file does not hold such an object; the line says `problem` and `remedy`.
    """
    try:
        values = parse_json(path.read_bytes())
        return build(values)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise MoseError(f"{path}: {problem}: {error}; {remedy}") from None


BAD_REPOSITORY = "bad_repository"
"""The reason under which the files of a repository are counted that cannot be read to its end."""


@dataclass(frozen=True)
class TaskProgress:
    """Progress of a task: repositories and files read, rows and tokens packed, bytes of text that passed the filters."""

    repositories: int = 0
    rows: int = 0
    tokens: int = 0
    bytes: int = 0
    files: int = 0


def too_many_bad(limit: int, bad: Sequence[BadRepository]) -> str:
    """The message for more bad repositories than the config allows."""
    return (
        f"max_bad_repositories: {len(bad)} repositories cannot be read, expected at most {limit}: mend them, leave them out of "
        f"sources or raise the limit; {bad[-1].reason}"
    )
