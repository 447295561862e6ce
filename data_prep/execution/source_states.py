"""Notices that a listed repository changed between two runs: `DATASET/tasks/sources.json` holds the state of each.

The state is the commit of a git work tree, sizes and times of a folder's files, the version of a package. Parquet inputs need
none, because their footers are part of the fingerprint of the sources.
"""

import time
from pathlib import Path
from typing import Any

from data_prep.execution.inputs import is_bound
from data_prep.execution.markers import in_threads
from data_prep.execution.task_files import list_tasks
from data_prep.pipeline.assignment import Assignment
from data_prep.pipeline.task_marker import marker_path, read_marker, read_record
from data_prep.sources.registry import SourcesConfig, state_of
from data_prep.sources.repositories import UNREADABLE, RepositoryRef
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.files.records import from_plain


def states_path(dataset: Path) -> Path:
    """Path of the states of a data set's sources."""
    return dataset / "tasks" / "sources.json"


def check_sources(dataset: Path, assignment: Assignment, sources: SourcesConfig, task: int | None) -> None:
    """Record the states of the listed repositories, or compare them, with `task` only those of this task.

    A repository that was left out because it could not be read may change: it was mended.

    Raises:
        MoseError: another repository changed since the data set was begun; the message says which, and from what to what.
    """
    everything = [ref for refs in assignment.refs for ref in refs]
    path = states_path(dataset)
    there = read_record(path, _states_of, "not a record of sources", "remove it") if is_bound(dataset, time.time()) else None
    refs = everything if there is None or task is None else assignment.refs[task] if assignment.refs else ()
    now = _states(refs, sources)
    known = there or {}
    changed = [name for name, state in now.items() if known.get(name, state) not in (state, UNREADABLE)]
    if changed:
        bad = _bad_names(dataset)
        changed = [name for name in changed if name not in bad]
    if changed:
        name, more = changed[0], f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise MoseError(
            f"{path}: {name}{more} changed since this data set was begun: was {known[name]}, is {now[name]}; expected the "
            "same: put it back, or pack into another output"
        )
    if now and {**known, **now} != there:
        write_json(path, {**known, **now})


def _states(refs: Any, sources: SourcesConfig) -> dict[str, str]:
    found: list[tuple[RepositoryRef, str]] = [(ref, state_of(ref, sources)) for ref in refs]
    return {ref.name: state for ref, state in found if state}


def _bad_names(dataset: Path) -> set[str]:
    markers = in_threads(lambda task: read_marker(marker_path(dataset, task)), sorted(list_tasks(dataset).done))
    return {bad.name for marker in markers if marker for bad in marker.bad_repositories}


def _states_of(values: Any) -> dict[str, str]:
    return from_plain(dict[str, str], values)
