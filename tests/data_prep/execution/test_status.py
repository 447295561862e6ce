"""`mose-data status`: who is done, running, failed, dead or missing; pace and end; what is to be run."""

import json
import time
from pathlib import Path

import pytest

from data_prep.cli import commands
from data_prep.execution import status as status_module
from data_prep.execution.lease import Lease
from data_prep.execution.pack import pack_dataset
from data_prep.execution.status import Status, status_of
from data_prep.execution.task_files import lease_path, write_failure
from data_prep.pipeline.task_marker import marker_path
from mose.command import run_command
from mose.files.lock import DEAD_AFTER_SECONDS
from tests.data_prep.repositories import make_config

MINUTES_2 = 120.0


def here(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = run_command("mose-data", "", commands(), ["status", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def running(dataset: Path, task: int, **values: object) -> None:
    """Leave the lease of a process of another machine."""
    with Lease(dataset, task, expected_repositories=100):
        record = json.loads(lease_path(dataset, task).read_text())
    now = time.time()
    base = {"machine": "another", "host": f"node{task}", "started": now - MINUTES_2, "heartbeat": now}
    lease_path(dataset, task).write_text(json.dumps({**record, **base, **values}))


def rows_of(dataset: Path, task: int) -> int:
    """Rows that a finished task wrote, as its marker says."""
    return sum(entry["rows"] for entry in json.loads(marker_path(dataset, task).read_text())["shards"].values())


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Of ten tasks, 0 and 1 done, 2 and 3 running, 4 failed, 5 dead, the others missing."""
    config = make_config(tmp_path, 60, num_tasks=3)
    for task in (0, 1):
        pack_dataset(config, task)
    folder = tmp_path / "dataset"
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("num_tasks: 3", "num_tasks: 10"))
    for task, repositories in ((2, 50), (3, 25)):
        progress = {"repositories": repositories, "rows": 1000 * repositories, "tokens": 7, "bytes": 9}
        running(folder, task, progress=progress)
    write_failure(folder, 4, "owner/name: cannot\nbe read")
    running(folder, 5, heartbeat=time.time() - DEAD_AFTER_SECONDS - 1)
    return folder


def test_every_task_is_counted_once(dataset: Path) -> None:
    status = status_of(dataset)
    assert (status.num_tasks, status.done, status.failed_tasks, status.dead) == (10, 2, (4,), (5,))
    assert [task.task for task in status.running] == [3, 2]
    assert status.missing == (6, 7, 8, 9)
    assert status.to_run == (4, 5, 6, 7, 8, 9)
    assert status.failed[4].startswith("owner/name: cannot be read (")
    assert not status.is_complete


def test_rows_pace_and_end(dataset: Path) -> None:
    status = status_of(dataset)
    done = [rows_of(dataset, task) for task in (0, 1)]
    assert status.rows == sum(done) + 75_000
    # Two tasks did .5 and .25 of theirs in two minutes; 2 done and .75 leave 7.25.
    pace = 0.75 / MINUTES_2
    assert status.seconds_left == pytest.approx(7.25 / pace, rel=0.01)
    assert status.rows_per_second == pytest.approx(pace * sum(done) / 2, rel=0.01)


def test_many_markers_are_not_all_read(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = status_module.read_marker
    monkeypatch.setattr(status_module, "_READ_MARKERS", 1)
    monkeypatch.setattr(status_module, "read_marker", lambda path: (read.append(path), real(path))[1])
    status = status_of(dataset)
    assert len(read) == 1
    assert status.rows_are_estimated


def test_what_is_missing_goes_to_sbatch(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here(capsys, dataset, "--missing") == (1, "4-9\n", "")


def test_people_see_counts_reasons_and_the_next_step(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = here(capsys, dataset)
    assert code == 1
    for part in ("done", "running", "estimated end", "node3", "task 4 failed: owner/name: cannot be read (", "--array=4-9"):
        assert part in shown
    assert shown.index("node3") < shown.index("node2")


def test_programs_get_everything_as_json(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = here(capsys, dataset, "--json")
    values = json.loads(shown)
    assert code == 1
    assert (values["done"], values["array"], values["missing"]) == (2, "4-9", [6, 7, 8, 9])
    assert set(Status.__dataclass_fields__) < set(values)


def test_complete_says_so_with_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path)
    for task in range(config.num_tasks):
        pack_dataset(config, task)
    code, shown, _ = here(capsys, config.output)
    assert code == 0
    assert f"next: mose-data finish {config.output}" in shown
    pack_dataset(config)
    assert here(capsys, config.output)[1].endswith("complete\n")
    assert here(capsys, config.output, "--missing") == (0, "\n", "")


def test_a_failure_is_forgotten_when_the_task_succeeds(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    pack_dataset(config, 1)
    write_failure(tmp_path / "dataset", 0, "the disk was full")
    assert status_of(tmp_path / "dataset").failed_tasks == (0,)
    pack_dataset(config, 0)
    status = status_of(tmp_path / "dataset")
    assert (status.done, status.failed_tasks, status.missing) == (2, (), (2,))


def test_a_folder_that_was_not_begun_and_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = here(capsys, tmp_path / "nothing")
    assert code == 2
    expected = "holds no config.yaml; expected a folder that `mose-data pack` has begun"
    assert error == f"mose-data: error: {tmp_path}/nothing: {expected}\n"
    config = make_config(tmp_path)
    pack_dataset(config, 0)
    for text in ("", "[]", "{"):
        marker_path(tmp_path / "dataset", 0).write_text(text)
        code, _, error = here(capsys, config.output)
        assert (code, error.count("\n")) == (2, 1)
        assert "task-000000.json: not a completion marker" in error
    marker_path(tmp_path / "dataset", 0).unlink()
    (tmp_path / "dataset/tasks/task-000001.failed.json").write_text("{")
    code, shown, _ = here(capsys, config.output)
    assert code == 1
    assert "task-000001.failed.json: not a record of a failure" in shown.replace("\n", "")


def test_ten_thousand_tasks_are_listed_once_in_seconds(tmp_path: Path) -> None:
    config = make_config(tmp_path, num_tasks=3)
    pack_dataset(config, 0)
    folder = tmp_path / "dataset"
    marker = marker_path(folder, 0).read_bytes()
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("num_tasks: 3", "num_tasks: 10000"))
    for task in range(1, 9000):
        marker_path(folder, task).write_bytes(marker)
    began = time.monotonic()
    status = status_of(folder)
    assert time.monotonic() - began < 5
    assert (status.done, len(status.missing), status.rows_are_estimated) == (9000, 1000, True)
    assert status.rows == 9000 * rows_of(folder, 0)
