"""The files in `DATASET/tasks`: which tasks are done, held or failed, why a task failed, and what dead processes left behind."""

import os
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.pipeline.task_marker import read_record
from mose.dataset.manifest import SPLITS
from mose.files.atomic_file import TEMPORARY_MARK, write_json
from mose.files.lock import process_start
from mose.files.records import from_plain
from mose.files.storage import is_local
from mose.files.streams import without_credentials

_NAME = re.compile(r"task-(\d{6,})(?:\.(running|failed))?\.json")
# The name of a partial file ends in HOST-PID.partial, see mose.files.atomic_file.temporary_path.
_OWNER = re.compile(rf"\.(?P<host>[^/]+)-(?P<pid>\d+){re.escape(TEMPORARY_MARK)}")


@dataclass(frozen=True)
class TaskStates:
    """Numbers of the tasks that have a file of each kind; a task may have several."""

    done: frozenset[int]
    held: frozenset[int]
    """Tasks with a lease, even if its process is dead."""
    failed: frozenset[int]


@dataclass(frozen=True)
class Failure:
    """The last error of a task that has not finished since."""

    task: int
    error: str
    host: str
    time: float
    """Seconds since 1970."""


def lease_path(dataset: Path, task: int) -> Path:
    """Path of the lease of the process that works on a task."""
    return dataset / "tasks" / f"task-{task:06d}.running.json"


def failure_path(dataset: Path, task: int) -> Path:
    """Path of the record of a task's last error."""
    return dataset / "tasks" / f"task-{task:06d}.failed.json"


def list_tasks(dataset: Path) -> TaskStates:
    """Every task that has a file, from one listing of the folder."""
    matches = [match for name in list_names(dataset / "tasks") if (match := _NAME.fullmatch(name))]
    return TaskStates(
        *(frozenset(int(match[1]) for match in matches if match[2] == kind) for kind in (None, "running", "failed"))
    )


def list_names(folder: Path) -> list[str]:
    """Names of a folder's entries; none if there is no such folder."""
    try:
        return os.listdir(folder) if is_local(folder) else [path.name for path in folder.iterdir()]  # noqa: PTH208 (no objects)
    except (FileNotFoundError, NotADirectoryError):
        return []


def write_failure(dataset: Path, task: int, error: str) -> None:
    """Record in one line why a task failed; `mose-data status` shows it."""
    values = {
        "task": task,
        "error": without_credentials(" ".join(error.split())),
        "host": socket.gethostname(),
        "time": time.time(),
    }
    write_json(failure_path(dataset, task), values)


def read_failure(dataset: Path, task: int) -> Failure | None:
    """The last error of a task; None if there is none.

    Raises:
        MoseError: the file is not such a record.
    """
    return read_record(failure_path(dataset, task), _failure_of, "not a record of a failure", "remove it")


def array_specification(tasks: Iterable[int]) -> str:
    """Task numbers in the format of SLURM's `--array`: 3,7-9."""
    spans: list[list[int]] = []
    for task in sorted(tasks):
        if spans and task == spans[-1][1] + 1:
            spans[-1][1] = task
        else:
            spans.append([task, task])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def remove_leftovers(dataset: Path, task: int, folders: tuple[str, ...] = ("tasks", "dropped", *SPLITS)) -> None:
    """Remove partial files of a task that dead processes left; the caller holds the task's lease.

    Partial files of a living process on this machine stay: if two processes run one task, neither may remove the other's files.
    """
    if is_local(dataset):
        for folder in folders:
            for name in list_names(dataset / folder):
                if f"-{task:06d}." in name:
                    _remove_if_dead(dataset / folder / name)


def remove_manifest_leftovers(dataset: Path) -> None:
    """Remove partial files beside the manifest that a killed `pack` or `finish` left."""
    if is_local(dataset):
        for name in list_names(dataset):
            _remove_if_dead(dataset / name)


def _remove_if_dead(path: Path) -> None:
    if path.name.startswith(".") and path.name.endswith(TEMPORARY_MARK):
        owner = _OWNER.search(path.name)
        is_here = owner is not None and owner["host"].endswith(socket.gethostname())
        if owner is None or not is_here or process_start(int(owner["pid"])) is None:
            path.unlink(missing_ok=True)


def _failure_of(values: Any) -> Failure:
    return from_plain(Failure, values)
