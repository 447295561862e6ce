"""Lock files: one living process per folder; dead ones are taken over, living ones never."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mose.files import lock as lock_module
from mose.files.lock import DEAD_AFTER_SECONDS, HeldError, Holder, Lock, living_holder, lock_file, process_start, read_holder
from tests.locks import compete, dead_pid

EXPECTED = "one process per run directory"


def own(folder: Path) -> Lock[Holder]:
    return lock_file(folder / "lock.json", "runs/a", EXPECTED)


def forge(folder: Path, **values: object) -> None:
    """Leave the lock of another process, whose heartbeat is also the time of the file."""
    record = {**dataclasses.asdict(Holder.of_this_process()), "token": "of another", **values}
    path = folder / "lock.json"
    path.write_text(json.dumps(record))
    os.utime(path, (record["heartbeat"],) * 2)


def test_a_second_process_is_refused_by_name_and_the_file_goes_with_the_block(tmp_path: Path) -> None:
    with own(tmp_path):
        holder = living_holder(tmp_path / "lock.json")
        assert holder is not None and holder.pid == os.getpid()
        with pytest.raises(HeldError) as caught, own(tmp_path):
            pass
        line = str(caught.value)
        assert line.startswith(f"runs/a: process {os.getpid()} of {holder.host}, started 20")
        assert line.endswith(f": works on it; expected {EXPECTED}")
    assert list(tmp_path.iterdir()) == []
    assert living_holder(tmp_path / "lock.json") is None


@pytest.mark.parametrize("values", [{"pid": 0}, {"process_start": "1"}])
def test_a_process_that_is_gone_is_taken_over_at_once(tmp_path: Path, values: dict[str, object]) -> None:
    forge(tmp_path, **{**values, "pid": values.get("pid", os.getpid()) or dead_pid()})
    assert living_holder(tmp_path / "lock.json") is None
    with own(tmp_path):
        holder = read_holder(tmp_path / "lock.json", Holder)
        assert holder is not None and holder.token != "of another"


def test_a_process_that_is_stopped_on_this_machine_keeps_its_lock(tmp_path: Path) -> None:
    """It may wake up and write: an old heartbeat proves nothing where the process table can be asked."""
    forge(tmp_path, heartbeat=time.time() - 100 * DEAD_AFTER_SECONDS)
    with pytest.raises(HeldError, match="works on it"), own(tmp_path):
        pass


def test_a_process_of_another_machine_is_taken_over_when_it_is_silent(tmp_path: Path) -> None:
    forge(tmp_path, machine="another", pid=1, job="77", heartbeat=time.time() - DEAD_AFTER_SECONDS + 20)
    with pytest.raises(HeldError, match=r"process 1 of \S+ \(SLURM job 77\), started"), own(tmp_path):
        pass
    forge(tmp_path, machine="another", pid=1, heartbeat=time.time() - DEAD_AFTER_SECONDS - 1)
    with own(tmp_path):
        pass


def test_a_machine_whose_clock_is_behind_keeps_its_lock(tmp_path: Path) -> None:
    forge(tmp_path, machine="another", heartbeat=time.time() - 2 * DEAD_AFTER_SECONDS)
    os.utime(tmp_path / "lock.json")
    with pytest.raises(HeldError, match="works on it"), own(tmp_path):
        pass


def test_a_job_that_the_scheduler_started_again_takes_over_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    forge(tmp_path, machine="another", pid=1)
    with pytest.raises(HeldError), own(tmp_path):
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with own(tmp_path):
        pass


def test_a_holder_that_was_taken_over_learns_it_and_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.02)
    lock = own(tmp_path)
    with lock:
        lock.check()
        forge(tmp_path, host="elsewhere")
        deadline = time.monotonic() + 10
        with pytest.raises(HeldError, match="runs/a: process .* of elsewhere, .*: took it over while this process wrote no"):
            while time.monotonic() < deadline:
                lock.check()
                time.sleep(0.01)
    holder = read_holder(tmp_path / "lock.json", Holder)
    assert holder is not None and holder.token == "of another"


def test_heartbeats_are_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.02)
    path = tmp_path / "lock.json"
    with own(tmp_path):
        first = read_holder(path, Holder)
        deadline = time.monotonic() + 10
        while read_holder(path, Holder) == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert read_holder(path, Holder) != first


def test_a_damaged_file_counts_by_its_age(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_text('{"token": ')
    with pytest.raises(HeldError, match="of an unknown host"), own(tmp_path):
        pass
    os.utime(path, (time.time() - DEAD_AFTER_SECONDS - 1,) * 2)
    with own(tmp_path):
        pass


@pytest.mark.parametrize("is_dead", [False, True])
def test_of_many_at_once_one_gets_it(tmp_path: Path, is_dead: bool) -> None:
    if is_dead:
        forge(tmp_path, pid=dead_pid())
    assert compete(lambda: own(tmp_path)) == [*[False] * 7, True]


def test_a_process_begins_once_and_a_zombie_is_dead() -> None:
    mine = process_start(os.getpid())
    assert mine is not None
    assert mine == process_start(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(child.pid) not in (None, mine)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(child.pid) is None
    child.wait()
