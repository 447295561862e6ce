"""What lies in `tasks`: array specifications, listing, and which half-written files may be removed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.execution.task_files import (
    array_specification,
    list_tasks,
    read_failure,
    remove_leftovers,
    write_failure,
)
from mose.errors import MoseError


def expand(specification: str) -> list[int]:
    """What SLURM makes of an array specification without steps and limits."""
    spans = [span.partition("-")[::2] for span in specification.split(",") if span]
    return [task for first, last in spans for task in range(int(first), int(last or first) + 1)]


@given(st.sets(st.integers(0, 60)))
def test_array_specifications_name_exactly_the_tasks(tasks: set[int]) -> None:
    assert expand(array_specification(tasks)) == sorted(tasks)


@given(st.sets(st.integers(0, 60)))
def test_array_specifications_are_as_short_as_can_be(tasks: set[int]) -> None:
    spans = sum(task - 1 not in tasks for task in tasks)
    assert array_specification(tasks).count(",") == max(spans - 1, 0)


def test_examples_of_array_specifications() -> None:
    assert array_specification([9, 3, 7, 8]) == "3,7-9"
    assert array_specification([]) == ""


def test_a_listing_knows_each_kind_of_file(tmp_path: Path) -> None:
    assert list_tasks(tmp_path).done == frozenset()
    (tmp_path / "tasks").mkdir()
    names = ("task-000003.json", "task-1234567.json", "task-000004.running.json", "task-000004.failed.json")
    others = ("inputs.json", ".task-000009.json.host-1.partial", "task-000008.json.bak", "task-00001.json")
    for name in (*names, *others):
        (tmp_path / "tasks" / name).touch()
    states = list_tasks(tmp_path)
    assert (states.done, states.held, states.failed) == ({3, 1234567}, {4}, {4})


def test_a_failure_is_one_line_with_time_and_host(tmp_path: Path) -> None:
    assert read_failure(tmp_path, 7) is None
    write_failure(tmp_path, 7, "x.parquet: is\n  damaged")
    failure = read_failure(tmp_path, 7)
    assert failure is not None
    assert (failure.task, failure.error, failure.host) == (7, "x.parquet: is damaged", socket.gethostname())
    (tmp_path / "tasks/task-000007.failed.json").write_text("[]")
    with pytest.raises(MoseError, match=r"task-000007.failed.json: not a record of a failure"):
        read_failure(tmp_path, 7)


def test_only_what_dead_processes_left_of_this_task_is_removed(tmp_path: Path) -> None:
    host, gone = socket.gethostname(), subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {
        f".shard-000003.tar.{host}-{gone.pid}.partial": False,
        ".shard-000003.tar.elsewhere-1.partial": False,
        ".shard-000003.tar.1.partial": False,
        f".shard-000003.tar.{host}-{os.getpid()}.partial": True,
        f".shard-000004.tar.{host}-{gone.pid}.partial": True,
        "shard-000003.tar": True,
    }
    (tmp_path / "train").mkdir()
    for name in names:
        (tmp_path / "train" / name).touch()
    remove_leftovers(tmp_path, 3)
    assert {name: (tmp_path / "train" / name).exists() for name in names} == names
