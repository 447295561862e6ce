"""Local workers: a failing task does not stop the others, a killed worker is named, others' tasks are waited for."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.execution import worker_pool as workers
from data_prep.execution.lease import Lease
from data_prep.execution.pack import pack_dataset
from data_prep.execution.status import status_of
from data_prep.execution.task_files import list_tasks
from data_prep.execution.task_runner import TaskRunner
from data_prep.pipeline.config import PackConfig
from mose.errors import MoseError
from tests.data_prep.kills import start_pack, wait_for_group, workers_of
from tests.data_prep.repositories import checksums, make_config

MANY = 60
Run = Callable[..., None]


def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *bad: int, **changes: object) -> tuple[PackConfig, list[int]]:
    """A config, and the tasks that a run tries; the tasks `bad` fail."""
    tried: list[int] = []
    run: Run = TaskRunner.run

    def run_or_fail(self: TaskRunner, task: int, *rest: object) -> None:
        tried.append(task)
        if task in bad:
            raise MoseError(f"task {task} is broken")
        run(self, task, *rest)

    monkeypatch.setattr(TaskRunner, "run", run_or_fail)
    return make_config(tmp_path, MANY, **changes), tried


def test_a_failed_task_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tried = broken(tmp_path, monkeypatch, 1, num_tasks=5)
    with pytest.raises(MoseError, match=r"^task 1 is broken$"):
        pack_dataset(config)
    assert tried == [0, 1, 2, 3, 4]
    assert list_tasks(tmp_path / "dataset").done == {0, 2, 3, 4}
    assert not (tmp_path / "dataset/manifest.json").exists()


def test_three_failures_in_a_row_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tried = broken(tmp_path, monkeypatch, 0, 2, 3, 4, num_tasks=6)
    with pytest.raises(MoseError, match=r"^task 0 is broken \(and 3 more tasks failed; `mose-data status` lists them\)$"):
        pack_dataset(config)
    assert tried == [0, 1, 2, 3, 4]


def test_a_worker_that_is_killed_fails_its_task_and_the_others_are_done(tmp_path: Path) -> None:
    config = make_config(tmp_path, 200, num_tasks=6, num_workers=2)
    process = start_pack(config, tmp_path)
    dataset = tmp_path / "dataset"
    while process.poll() is None and not list_tasks(dataset).held:
        time.sleep(0.01)
    victims = workers_of(process.pid)
    os.kill(victims[0], signal.SIGKILL)
    error = process.communicate()[1]
    wait_for_group(process.pid)
    assert process.returncode == 2
    last = error.splitlines()[-1]  # on a slow machine, lines of progress come before it
    assert last.startswith("mose-data: error: num_workers: the worker process of task ")
    assert last.endswith("was killed by signal 9, perhaps for its memory; run the command again to go on, with fewer")
    assert "Traceback" not in error
    status = status_of(dataset)
    assert status.done == 5
    assert len(status.failed_tasks) == 1
    assert "killed by signal 9" in status.failed[status.failed_tasks[0]]
    pack_dataset(config)
    whole = replace(config, output=str(tmp_path / "whole"), num_workers=1)
    pack_dataset(whole)
    assert checksums(dataset) == checksums(tmp_path / "whole")


def test_a_task_of_another_command_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "_WAIT_SECONDS", 0.05)
    config = make_config(tmp_path, MANY, num_tasks=3)
    lease = Lease(tmp_path / "dataset", 1)
    pack_dataset(replace(config, output=str(tmp_path / "whole")))
    pack_dataset(config, 0)
    with lease:
        with pytest.raises(MoseError, match="task 1: process .* works on it; expected one process per task"):
            pack_dataset(config, 1)
        thread = threading.Thread(target=pack_dataset, args=(config,))
        thread.start()
        deadline = time.monotonic() + 30
        while list_tasks(tmp_path / "dataset").done != {0, 2} and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        assert thread.is_alive()
    thread.join(30)
    assert not thread.is_alive()
    assert capsys.readouterr().err.count("packing: waiting for tasks of other commands: 1, among them task 1: process") == 1
    assert checksums(tmp_path / "dataset") == checksums(tmp_path / "whole")
