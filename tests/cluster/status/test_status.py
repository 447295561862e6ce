"""The states of runs, from made-up directories and queues; time parts by hand; the table, JSON and the hook."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from cluster.cli import commands
from cluster.launch.freeze import record_job
from cluster.slurm import QueuedJob
from cluster.status import show
from cluster.status.read import RunStatus, read_status, time_parts
from cluster.supervise.history import History, Start
from mose.command import run_command
from mose.run_directory import RunDirectory

NOW = 10_000.0
BEGUN = Start("7", 0, ("n1",), 1100.0, 0)
RUNNING = {"7": QueuedJob("7", "RUNNING", "n1")}
PENDING = {"7": QueuedJob("7", "PENDING", "Priority")}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with a job, a heartbeat of now, and metrics."""
    run = RunDirectory(tmp_path / "one")
    record_job(run.launch, "7")
    (run.launch / "config.yaml").write_text("max_steps: 100\n")
    beat(run)
    run.append_metrics(
        {
            "step": 40,
            "loss/total": 3.5,
            "loss/exit_04/mlm": 2.0,
            "loss/exit_04/icc": 0.5,
            "loss/exit_09/mlm": 1.0,
            "throughput/tokens_per_second_per_device": 1234.0,
            "throughput/data_wait_fraction": 0.01,
        }
    )
    run.append_metrics({"step": 40, "validation/loss/total": 9.0, "validation/loss/exit_04/mlm": 9.0, "more": 1})
    return run


def beat(run: RunDirectory, stage: str = "forward", age: float = 5.0, step: int = 42) -> None:
    run.path.mkdir(exist_ok=True)
    run.heartbeat.write_text(json.dumps({"step": step, "stage": stage, "unix_seconds": NOW - age}))


def state_of(run: RunDirectory, queue: dict[str, QueuedJob] | None = None) -> RunStatus:
    return read_status(run.path, queue, NOW, 300.0)


def test_a_job_that_ended_before_its_first_line_is_named(run: RunDirectory) -> None:
    run.heartbeat.unlink()
    assert state_of(run, {}).note == "job 7 is not in your queue: `scontrol show job 7` says why"
    assert (state_of(run, {}).state, state_of(run, None).note) == ("not started", "")
    assert state_of(run, PENDING).state == "queued"


def test_a_running_run(run: RunDirectory) -> None:
    found = state_of(run, RUNNING)
    assert (found.state, found.step, found.max_steps, found.loss) == ("running", 42, 100, 3.5)
    assert found.exit_losses == {"exit_04": 2.5, "exit_09": 1.0}
    assert (found.tokens_per_second, found.data_wait, found.note) == (1234.0, 0.01, "job 7 on n1")


def test_the_other_states(run: RunDirectory) -> None:
    assert state_of(run, PENDING).state == "queued"
    History(run.launch).append(BEGUN)
    assert state_of(run, PENDING).state == "requeued"
    assert state_of(run, PENDING).note == "job 7: Priority; last start: no record of its end"
    beat(run, age=400)
    found = state_of(run, RUNNING)
    assert (found.state, found.note) == ("stalled", "job 7: no heartbeat for 400 s, last in 'forward' of step 43")
    History(run.launch).append(dataclasses.replace(BEGUN, cause="failed", code=9, ended=2000.0))
    assert (state_of(run, {}).state, state_of(run, {}).note) == ("ended", "job 7: failed, code 9")
    assert state_of(run, PENDING).note == "job 7: Priority; last start: failed, code 9"
    beat(run, "diverged")
    assert state_of(run, {}).state == "diverged"
    (run.launch / "done.json").write_text("{}")
    assert state_of(run, {}).state == "done"


def test_a_start_after_a_long_time_in_the_queue_is_not_stalled(run: RunDirectory) -> None:
    """Its heartbeat is still that of the start before."""
    beat(run, age=4000)
    for second in (Start("7", 1, ("n1",), NOW - 20.0, 40), dataclasses.replace(BEGUN, cause="stopped", ended=NOW - 5.0)):
        History(run.launch).append(second)
        assert state_of(run, RUNNING).state == "running"


def test_a_run_that_never_began(tmp_path: Path) -> None:
    assert read_status(tmp_path, {}, NOW, 300.0).state == "not started"


def test_where_the_time_went() -> None:
    """Submitted at 1000; 100 s in the queue; a start of 50 s and 400 s of 40 steps of which 30 were kept; 60 s requeued; ..."""
    first = dataclasses.replace(BEGUN, trained=1150.0, ended=1550.0, last_step=40, cause="failed")
    second = Start("7", 1, ("n1",), 1610.0, 30, trained=1650.0)
    parts = time_parts(1000.0, [first, second], 50, 1850.0)
    assert (parts.queued, parts.starting, parts.useful, parts.repeated) == (160.0, 90.0, 500.0, 100.0)
    assert parts.total == 850.0 and parts.goodput == pytest.approx(500 / 850)
    assert time_parts(1000.0, [], 0, 1200.0).goodput == 0.0


def test_the_time_that_is_left(run: RunDirectory) -> None:
    History(run.launch).append(dataclasses.replace(BEGUN, trained=NOW - 420.0))
    assert state_of(run, RUNNING).seconds_left == pytest.approx((100 - 42) * 10.0)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.mark.usefixtures("now")
def test_the_command(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    def status(*words: str) -> int:
        return run_command("mose-cluster", "Jobs.", commands(), ["status", str(run.path), *words])

    assert status() == 0
    shown = capsys.readouterr()
    assert "running" in shown.out and "42 of 100" in shown.out and "04: 2.50" in shown.out
    assert "tensorboard --logdir_spec" in shown.out and "squeue: not found" in shown.err
    beat(run, "diverged")
    assert status("--json") == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["state"], found["step"], found["goodput"]) == ("diverged", 42, None)
    assert run_command("mose-cluster", "Jobs.", commands(), ["status", "nothing"]) == 2
    assert capsys.readouterr().err == "mose-cluster: error: nothing: no such folder, expected a run directory\n"


@pytest.mark.usefixtures("now")
def test_a_watch_tells_of_each_change_once(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hook = tmp_path / "hook"
    hook.write_text('#!/bin/sh\necho "$2 $3 $4" >> ' + f"{tmp_path}/told\nexit 3\n")
    hook.chmod(0o755)
    looks = iter(["forward", "diverged", "finished"])

    def sleep(seconds: float) -> None:
        beat(run, next(looks))

    options = show.WatchOptions(1.0, on_change=f"{hook} mail", log=str(tmp_path / "log"))
    assert show.watch([str(run.path)], options, sleep) == 0
    assert (tmp_path / "told").read_text().splitlines() == [
        f"{run.path}  running",
        f"{run.path} running diverged",
        f"{run.path} diverged done",
    ]
    assert len((tmp_path / "log").read_text().splitlines()) == 3
    assert f"on-change: {hook}: exit code 3" in capsys.readouterr().err


def test_the_job_of_the_curves(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tensorboard", str(run.path), "--print-only", "--job.time_limit", "08:00:00"]
    assert run_command("mose-cluster", "Jobs.", commands(), words) == 0
    script = capsys.readouterr().out
    assert f"tensorboard --logdir_spec one:{run.path}/tensorboard --host" in script
    assert 'echo "ssh -N -L 6006:$host:$port' in script and "#SBATCH --job-name=tensorboard" in script
