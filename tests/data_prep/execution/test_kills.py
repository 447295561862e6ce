"""Killed at random moments and started again, or done by any number of workers: the same bytes; a full disk harms nothing.

`MOSE_KILLS_RESULT=FILE make soak` also writes what the kills hit to FILE.
"""

import dataclasses
import datetime
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.execution.finish import finish
from data_prep.execution.pack import pack_dataset
from data_prep.pipeline.config import PackConfig
from data_prep.tools.verify import verify
from mose.config import save_config
from mose.files.atomic_file import TEMPORARY_MARK, write_json
from tests.data_prep.kills import KillReport, kill_and_restart, start_pack, wait_for_group
from tests.data_prep.repositories import checksums, make_config


def undisturbed(config: PackConfig) -> dict[str, str]:
    """Checksums of the same data set, its tasks done one by one in another order in this process."""
    config = replace(config, output=f"{config.output}-undisturbed", num_workers=1)
    for task in reversed(range(config.num_tasks)):
        pack_dataset(config, task)
    finish(Path(config.output))
    return checksums(Path(config.output))


def check_kills(folder: Path, config: PackConfig, kills: int) -> KillReport:
    report = kill_and_restart(config, folder, undisturbed(config), kills, seed=kills)
    assert report.differences == []
    assert report.kills == kills
    assert report.equal_data_sets == report.data_sets > report.interrupted_data_sets > 0
    assert [path for path in (folder / "dataset").rglob("*") if path.name.endswith((TEMPORARY_MARK, "running.json"))] == []
    assert verify(folder / "dataset").problems == []
    return report


def test_killed_three_times(tmp_path: Path) -> None:
    check_kills(tmp_path, make_config(tmp_path, 60, num_tasks=4, num_workers=2), 3)


@pytest.mark.soak
def test_killed_fifty_times(tmp_path: Path) -> None:
    config = make_config(tmp_path, 400, num_tasks=7, num_workers=2)
    report = check_kills(tmp_path, config, 50)
    assert set(report.targets) == {"worker", "command"}
    if "MOSE_KILLS_RESULT" in os.environ:
        values = {
            "date": datetime.date.today().isoformat(),
            "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
            "corpus": "400 generated repositories, 7 tasks, 2 workers",
            **dataclasses.asdict(report),
        }
        write_json(Path(os.environ["MOSE_KILLS_RESULT"]), values)


@pytest.mark.parametrize(("tasks", "workers"), [(1, 1), (4, 1), (4, 2), (7, 2)])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, tasks: int, workers: int) -> None:
    config = make_config(tmp_path, 80, num_tasks=tasks, num_workers=workers)
    pack_dataset(config)
    assert checksums(tmp_path / "dataset") == undisturbed(config)


def test_a_full_disk_is_one_line_and_a_relaunch_completes(tmp_path: Path) -> None:
    """No file may grow beyond a size that a shard exceeds: the write fails in the middle of it, as on a full disk."""
    config = make_config(tmp_path, 60, num_tasks=2, held_out_fraction=0.0)
    expected = undisturbed(config)
    save_config(config, tmp_path / "pack.yaml")
    shard = max(path.stat().st_size for path in (tmp_path / "dataset-undisturbed/train").glob("shard-*"))
    small = max(path.stat().st_size for path in (tmp_path / "dataset-undisturbed").glob("*/*") if "shard" not in path.name)
    limit = (shard + small) // 2

    def only_small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that write() fails with an error instead of a signal
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "data_prep.cli", "pack", "--config", str(tmp_path / "pack.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=only_small_files)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("mose-data: error: [Errno 27] File too large: ")
    assert "shard-000000.tar" in last
    assert "Traceback" not in result.stderr
    found = [path.name for path in (tmp_path / "dataset").rglob("*") if path.is_file()]
    assert [name for name in found if name.startswith("shard") or name.endswith(TEMPORARY_MARK)] == []
    assert "task-000000.failed.json" in found
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert checksums(tmp_path / "dataset") == expected


def test_the_schedulers_signal_ends_a_task_at_once_and_frees_it(tmp_path: Path) -> None:
    config = make_config(tmp_path, 200, num_tasks=1)
    process = start_pack(config, tmp_path)
    lease = tmp_path / "dataset/tasks/task-000000.running.json"
    while not lease.exists() and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    began = time.monotonic()
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 5
    assert not lease.exists()
    wait_for_group(process.pid)
    pack_dataset(config, 0)
    assert finish(tmp_path / "dataset").rows("train") > 0
