"""`mose-data pack` killed at random moments and started again: who was killed when, and what the data set was like then."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.execution.lease import read_lease
from data_prep.execution.task_files import list_tasks
from data_prep.pipeline.config import PackConfig
from mose.config import save_config
from mose.files.atomic_file import TEMPORARY_MARK
from tests.data_prep.repositories import checksums

# A killed command's workers end by themselves within this time, or the run has failed.
GROUP_SECONDS = 60.0


@dataclass
class KillReport:
    """What was done to a data set, and what came out."""

    kills: int = 0
    runs: int = 0
    data_sets: int = 0
    interrupted_data_sets: int = 0
    """Killed at least once before they got complete."""
    equal_data_sets: int = 0
    targets: dict[str, int] = field(default_factory=dict)
    moments: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0


def start_pack(config: PackConfig, folder: Path) -> "subprocess.Popen[str]":
    """The command as a user types it, as leader of its own process group."""
    path = folder / "pack.yaml"
    save_config(config, path)
    command = [sys.executable, "-m", "data_prep.cli", "pack", "--config", str(path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)


def workers_of(pid: int) -> list[int]:
    """Worker processes of a running command."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []


def wait_for_group(group: int) -> None:
    """Wait until no process of a group is left."""
    deadline = time.monotonic() + GROUP_SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    # Not killed here: on a busy machine the number may belong to somebody else by now.
    raise AssertionError("a worker outlived the command that started it")


def is_at_work(dataset: Path) -> bool:
    """Whether a living process holds a task; leases that killed processes left do not count."""
    leases = [read_lease(dataset, task) for task in list_tasks(dataset).held]
    return any(lease is not None and lease.is_alive(time.time()) for lease in leases)


def moment_of(dataset: Path, started: float, num_tasks: int) -> str:
    """What a run that began at `started` (seconds since 1970) is doing, in words."""
    if (dataset / "manifest.json").exists():
        return "complete, about to end"
    if not is_at_work(dataset):
        return "merging" if len(list_tasks(dataset).done) == num_tasks else "starting, or between tasks"
    # What an earlier run left half-written does not count.
    fresh = [path for path in dataset.rglob(f"*{TEMPORARY_MARK}") if _modified(path) >= started]
    return "a file half-written" if fresh else "reading or packing"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def kill_and_restart(config: PackConfig, folder: Path, expected: dict[str, str], kills: int, seed: int) -> KillReport:
    """Pack again and again until `kills` kills were made; every data set that got complete is compared with `expected`.

    The first run is left alone and timed, so that the kills fall anywhere in the later ones.
    """
    random, report, began = np.random.default_rng(seed), KillReport(), time.monotonic()
    dataset, busy, kills_before = Path(config.output), 0.0, 0
    while True:
        process = start_pack(config, folder)
        report.runs += 1
        if busy and report.kills < kills and _kill(process, config, random, busy, report):
            continue
        if not busy:
            _wait_for_lease(process, dataset)
            busy = -time.monotonic()
        error = process.communicate()[1]
        busy += time.monotonic() if busy < 0 else 0.0
        wait_for_group(process.pid)
        assert process.returncode == 0, error
        _compare(dataset, expected, report)
        report.interrupted_data_sets += report.kills > kills_before
        kills_before = report.kills
        if report.kills == kills:
            report.seconds = time.monotonic() - began
            return report
        subprocess.run(["rm", "-r", str(dataset)], check=True)


def _wait_for_lease(process: "subprocess.Popen[str]", dataset: Path) -> None:
    while process.poll() is None and not is_at_work(dataset):
        time.sleep(0.002)


def _kill(
    process: "subprocess.Popen[str]", config: PackConfig, random: np.random.Generator, busy: float, report: KillReport
) -> bool:
    """Kill the command or one of its workers after a random time; False if it ended before.

    One kill in five falls into the first second, where Python starts; the others come while there is something to pack.
    """
    dataset, delay, started = Path(config.output), random.uniform(0.0, 1.0), time.time()
    if random.random() < 0.8:
        _wait_for_lease(process, dataset)
        # Not scaled to what is left to do: the last tasks of a data set would be killed for ever.
        delay *= busy
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay)
        return False
    workers = workers_of(process.pid)
    name = "worker" if workers and random.random() < 0.5 else "command"
    moment = moment_of(dataset, started, config.num_tasks)
    try:
        os.kill(int(random.choice(workers)) if name == "worker" else process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    report.kills += 1
    report.targets[name] = report.targets.get(name, 0) + 1
    report.moments[moment] = report.moments.get(moment, 0) + 1
    process.communicate()
    wait_for_group(process.pid)
    return True


def _compare(dataset: Path, expected: dict[str, str], report: KillReport) -> None:
    report.data_sets += 1
    found = checksums(dataset)
    report.equal_data_sets += found == expected
    names = sorted(set(found) | set(expected))
    report.differences += [name for name in names if found.get(name) != expected.get(name)]
