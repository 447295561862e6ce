"""Leases: one living process per task, dead ones taken over, and the progress that a heartbeat carries."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from data_prep.execution.lease import Lease, LeaseRecord, TaskHeldError, read_lease
from data_prep.execution.task_files import lease_path
from data_prep.pipeline.task_marker import TaskProgress
from mose.files import lock as lock_module
from mose.files.lock import DEAD_AFTER_SECONDS
from mose.files.storage import storage_path
from tests.locks import compete, dead_pid


def held(dataset: Path, task: int = 3) -> LeaseRecord:
    record = read_lease(dataset, task)
    assert record is not None
    return record


def change(dataset: Path, **values: object) -> None:
    """Make a lease look as if somebody else had written it."""
    path = lease_path(dataset, 3)
    record = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps(record))
    os.utime(path, (record["heartbeat"],) * 2)


def forge(dataset: Path, **values: object) -> None:
    """Leave a lease whose process is not this one."""
    with Lease(dataset, 3):
        content = lease_path(dataset, 3).read_text()
    lease_path(dataset, 3).write_text(content)
    change(dataset, token="of another", **values)


def test_a_lease_says_who_and_goes_with_its_block(tmp_path: Path) -> None:
    with Lease(tmp_path, 3, expected_repositories=12):
        record = held(tmp_path)
        assert (record.task, record.pid, record.expected_repositories) == (3, os.getpid(), 12)
        assert record.is_alive(time.time())
    assert list(tmp_path.rglob("*.json")) == []


def test_a_second_process_is_refused_with_who_and_since_when(tmp_path: Path) -> None:
    with Lease(tmp_path, 3):
        host = held(tmp_path).host
        with pytest.raises(TaskHeldError) as caught:
            Lease(tmp_path, 3).__enter__()
        assert f"task 3: process {os.getpid()} of {host}, started 20" in str(caught.value)
        assert "last heartbeat 20" in str(caught.value)
        assert held(tmp_path).pid == os.getpid()
        with Lease(tmp_path, 4):
            pass


def test_a_process_that_is_gone_is_taken_over_at_once(tmp_path: Path) -> None:
    forge(tmp_path, pid=dead_pid())
    with Lease(tmp_path, 3):
        assert held(tmp_path).pid == os.getpid()
    assert list(tmp_path.rglob("*.json")) + list(tmp_path.rglob(".*")) == []


def test_another_process_that_got_the_same_number_does_not_count(tmp_path: Path) -> None:
    forge(tmp_path, process_start="1")
    with Lease(tmp_path, 3):
        pass


def test_a_process_elsewhere_is_taken_over_when_it_is_silent(tmp_path: Path) -> None:
    forge(tmp_path, machine="another", pid=1, heartbeat=time.time() - DEAD_AFTER_SECONDS + 20)
    with pytest.raises(TaskHeldError, match="task 3: process 1 of"):
        Lease(tmp_path, 3).__enter__()
    change(tmp_path, heartbeat=time.time() - DEAD_AFTER_SECONDS - 1)
    with Lease(tmp_path, 3):
        pass


def test_a_job_that_the_scheduler_started_again_need_not_wait_for_its_former_self(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    forge(tmp_path, machine="another", pid=1)
    with pytest.raises(TaskHeldError):
        Lease(tmp_path, 3).__enter__()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with Lease(tmp_path, 3):
        pass


def test_heartbeats_carry_the_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.02)
    progress = TaskProgress(5, 100, 20_000, 60_000)
    with Lease(tmp_path, 3) as lease:
        lease.observe(progress)
        first = held(tmp_path).heartbeat
        deadline = time.monotonic() + 10
        while held(tmp_path).progress != progress and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held(tmp_path).progress == progress
        assert held(tmp_path).heartbeat > first


def test_a_lease_that_was_taken_over_ends_the_work_and_stays_with_its_taker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.02)

    def work() -> None:
        with Lease(tmp_path, 3) as lease:
            change(tmp_path, token="of another", host="elsewhere")
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                lease.observe(TaskProgress(1, 1, 1, 1))
                time.sleep(0.01)

    with pytest.raises(TaskHeldError, match="of elsewhere, .*: took it over while this process wrote no heartbeat"):
        work()
    assert held(tmp_path).token == "of another"


def test_a_dead_lease_is_not_replaced_once_another_process_has_taken_it_over(tmp_path: Path) -> None:
    """A process may stop between its look at a dead lease and the replacement, for as long as it likes."""
    forge(tmp_path, pid=dead_pid())
    late = Lease(tmp_path, 3)
    assert not late._lives(held(tmp_path))
    with Lease(tmp_path, 3):
        token = held(tmp_path).token
        assert not late._take_over()
        assert held(tmp_path).token == token


def test_a_take_over_that_was_killed_half_way_blocks_nobody(tmp_path: Path) -> None:
    forge(tmp_path, pid=dead_pid())
    path = lease_path(tmp_path, 3)
    shutil.copy2(path, path.with_name(f".{path.name}.takeover"))
    with Lease(tmp_path, 3):
        assert held(tmp_path).pid == os.getpid()
    assert list(tmp_path.rglob("*.json")) + list(tmp_path.rglob(".*")) == []


def test_while_another_process_replaces_a_dead_lease_it_cannot_be_taken(tmp_path: Path) -> None:
    forge(tmp_path, pid=dead_pid())
    path = lease_path(tmp_path, 3)
    dead = path.read_text()
    change(tmp_path, pid=os.getpid())
    path.rename(path.with_name(f".{path.name}.takeover"))
    path.write_text(dead)
    with pytest.raises(TaskHeldError, match="task 3: process"):
        Lease(tmp_path, 3).__enter__()
    assert path.read_text() == dead


def test_an_unreadable_lease_counts_by_its_age(tmp_path: Path) -> None:
    path = lease_path(tmp_path, 3)
    path.parent.mkdir()
    path.write_text('{"task": 3')
    os.utime(path, (time.time() - DEAD_AFTER_SECONDS - 1,) * 2)
    with Lease(tmp_path, 3):
        pass


@pytest.mark.parametrize("is_dead", [False, True])
def test_of_many_at_once_one_gets_it(tmp_path: Path, is_dead: bool) -> None:
    if is_dead:
        forge(tmp_path, pid=dead_pid())
    assert compete(lambda: Lease(tmp_path, 3)) == [*[False] * 7, True]


def test_on_an_object_store_it_works_as_far_as_it_can() -> None:
    dataset = storage_path(f"memory://leases-{os.getpid()}")
    with Lease(dataset, 3):
        with pytest.raises(TaskHeldError, match="task 3: process"):
            Lease(dataset, 3).__enter__()
        path = lease_path(dataset, 3)
        path.write_text(json.dumps({**json.loads(path.read_text()), "pid": dead_pid()}))
    with Lease(dataset, 3):
        assert held(dataset).pid == os.getpid()
    assert not lease_path(dataset, 3).exists()
