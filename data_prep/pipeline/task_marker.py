"""The completion marker of a task, `DATASET/tasks/task-N.json`, and the reader of the JSON records beside it."""

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mose.dataset.manifest import ShardEntry
from mose.errors import MoseError
from mose.files.atomic_file import write_json

Record = TypeVar("Record")


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

    @staticmethod
    def of_plain(path: Path, shards: dict[str, Any], **values: Any) -> "TaskMarker":
        """The marker from the values of its file `path`.

        Raises:
            MoseError: a path of a shard leads out of the data set, or a value is of another type.
        """
        entries = {split: ShardEntry.of_plain(entry, f"{path}: shards.{split}") for split, entry in shards.items()}
        return TaskMarker(shards=entries, **values)


def marker_path(dataset: Path, task: int) -> Path:
    """Path of a task's completion marker."""
    return dataset / "tasks" / f"task-{task:06d}.json"


def read_marker(path: Path) -> TaskMarker | None:
    """The marker of a finished task; None if the task has not finished.

    Raises:
        MoseError: the file is not a completion marker.
    """
    build = functools.partial(TaskMarker.of_plain, path)
    return read_record(path, build, "not a completion marker", "remove it, and its task is run again")


def write_marker(dataset: Path, marker: TaskMarker) -> None:
    """Write or replace the marker of a task."""
    write_json(marker_path(dataset, marker.task), dataclasses.asdict(marker))


def read_record(path: Path, build: Callable[..., Record], problem: str, remedy: str) -> Record | None:
    """Call `build` with the values of a JSON object; None if the file does not exist.

    Raises:
        MoseError: the file does not hold such an object; the line says `problem` and `remedy`.
    """
    try:
        return build(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MoseError(f"{path}: {problem}: {error}; {remedy}") from None
