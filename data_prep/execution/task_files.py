"""What lies in `DATASET/tasks`: which tasks are done, running or failed, from one listing; and why a task failed."""

import json
import os
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_prep.pipeline.task import marker_path
from mose.dataset.manifest import SPLITS
from mose.errors import MoseError
from mose.files.atomic_file import TEMPORARY_MARK, write_json
from mose.files.storage import is_local

_NAME = re.compile(r"task-(\d{6,})(?:\.(running|failed))?\.json")
# A partial file's name ends in HOST-PID.partial, see mose.files.atomic_file.temporary_path.
_OWNER = re.compile(rf"\.(?P<host>[^/]+)-(?P<pid>\d+){re.escape(TEMPORARY_MARK)}")


@dataclass(frozen=True)
class TaskStates:
    """Numbers of the tasks that have a file of each kind; a task may be in several."""

    done: frozenset[int]
    claimed: frozenset[int]
    failed: frozenset[int]


@dataclass(frozen=True)
class Failure:
    """The last error of a task that has not finished since."""

    task: int
    error: str
    host: str
    time: float
    """Seconds since 1970."""


def claim_path(dataset: Path, task: int) -> Path:
    """Who works on a task at present."""
    return dataset / "tasks" / f"task-{task:06d}.running.json"


def failure_path(dataset: Path, task: int) -> Path:
    """Why a task failed."""
    return dataset / "tasks" / f"task-{task:06d}.failed.json"


def list_tasks(dataset: Path) -> TaskStates:
    """Every task that has a file, from one listing of the folder."""
    found: dict[str, set[int]] = {"": set(), "running": set(), "failed": set()}
    for name in _names(dataset / "tasks"):
        match = _NAME.fullmatch(name)
        if match:
            found[match[2] or ""].add(int(match[1]))
    return TaskStates(frozenset(found[""]), frozenset(found["running"]), frozenset(found["failed"]))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder) if is_local(folder) else [path.name for path in folder.iterdir()]  # noqa: PTH208 (no objects)
    except FileNotFoundError:
        return []


def write_failure(dataset: Path, task: int, error: str) -> None:
    """Say why a task failed, in one line; `mose-data status` shows it."""
    values = {"task": task, "error": " ".join(error.split()), "host": socket.gethostname(), "time": time.time()}
    write_json(failure_path(dataset, task), values)


def read_failure(dataset: Path, task: int) -> Failure | None:
    """The last error of a task, None if there is none.

    Raises:
        MoseError: the file is there but is no such record.
    """
    path = failure_path(dataset, task)
    try:
        return Failure(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise MoseError(f"{path}: not a record of a failure: {error}; remove it") from None


def array_specification(tasks: Iterable[int]) -> str:
    """Task numbers as SLURM's `--array` takes them: 3,7-9."""
    spans: list[list[int]] = []
    for task in sorted(tasks):
        if spans and task == spans[-1][1] + 1:
            spans[-1][1] = task
        else:
            spans.append([task, task])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def remove_leftovers(dataset: Path, task: int) -> None:
    """Remove what a dead process left half-written of a task; the caller holds its claim.

    What another living process of this machine writes stays: two processes at one task must not take each other's files.
    """
    if not is_local(dataset):
        return
    for folder in ("tasks", "dropped", *SPLITS):
        for name in _names(dataset / folder):
            if f"-{task:06d}." in name:
                _remove_if_dead(dataset / folder / name)


def remove_manifest_leftovers(dataset: Path) -> None:
    """Remove what a killed `pack` or `finish` left half-written beside the manifest."""
    if is_local(dataset):
        for name in _names(dataset):
            _remove_if_dead(dataset / name)


def _remove_if_dead(path: Path) -> None:
    if path.name.startswith(".") and path.name.endswith(TEMPORARY_MARK) and not _is_being_written(path.name):
        path.unlink(missing_ok=True)


def _is_being_written(name: str) -> bool:
    owner = _OWNER.search(name)
    return owner is not None and owner["host"].endswith(socket.gethostname()) and process_start(int(owner["pid"])) is not None


def process_start(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's own unit; None if it is gone or a zombie.

    Where there is no /proc, only whether it can be signalled: "unknown" or None.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def has_finished(dataset: Path, task: int) -> bool:
    """Whether a task's marker is there."""
    return marker_path(dataset, task).is_file()
