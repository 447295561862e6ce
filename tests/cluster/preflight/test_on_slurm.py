"""A preflight on a real SLURM: a node that is planted as slow is named and excluded, and the run goes on on another one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.supervise.history import CHECKED, FINISHED, History
from mose.run_directory import RunDirectory
from tests.cluster.private_slurm import PrivateSlurm

ROOT = Path(__file__).parents[3]
PROGRAMS = Path(sys.executable).parent
# What a node measures, without the seconds that torch needs; n2 is ten times slower than the others.
MEASURING = """
[ "$SLURMD_NODENAME" = n2 ] && flops=1e9 || flops=1e10
facts='"stage":"done","kind":"cpu","digest":"d","products":9,"run_free":99999999999,"temporary_free":99999999999'
printf 'mose-preflight {"rank":%d,"node":"%s",%s,"flops":%s}\\n' "$SLURM_PROCID" "$SLURMD_NODENAME" "$facts" "$flops"
"""


def write_tool(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands before all others, where the trainer is a stand-in; jobs are submitted in the folder above it."""
    if not slurm.namespaces:
        pytest.skip("this user may not give a node its own host name (unshare --user --uts), so that ranks cannot meet")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tools"
    write_tool(folder / "mose-pretrain", f'exec {sys.executable} -S {ROOT}/tests/cluster/drills/stand_in_trainer.py "$@"')
    for name, value in {**slurm.environment, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{folder}:{PROGRAMS}:{os.environ['PATH']}")
    return folder


def launch(preflight: dict[str, float]) -> str:
    """Submit a short run on two nodes; returns the job's number."""
    job = {"name": "drill", "time_limit": "30", "cpus_per_task": 2}
    config = {"run_config": "run.yaml", "output": "run", "nodes": 2, "gpus_per_node": 0, "ranks_per_node": 1, "launcher": "srun"}
    Path("run.yaml").write_text(json.dumps({"max_steps": 20}))
    Path("job.json").write_text(json.dumps(config | {"job": job, "preflight": preflight}))
    command = [sys.executable, "-m", "cluster.cli", "launch", "pretrain", "--config", "job.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def log_without_n2(slurm: PrivateSlurm, number: str) -> str:
    """The log of a job that finished after its first preflight had excluded n2."""
    log = Path(f"logs/drill-{number}.log")
    found = slurm.wait_state(number, "COMPLETED", "FAILED", "CANCELLED", seconds=400)
    assert (found["JobState"], found["ExcNodeList"]) == ("COMPLETED", "n2"), log.read_text()
    history = History(RunDirectory(Path("run")).launch).read()
    assert [(start.cause, start.suspects) for start in history] == [(CHECKED, ("n2",)), (FINISHED, ())]
    assert [start.nodes for start in history] == [("n1", "n2"), ("n1", "n3")]
    text = log.read_text()
    assert "queued again after 0 restarts after its preflight, without n2" in text
    first, second = (json.loads(Path(f"run/launch/preflight-{number}-{restart}.json").read_text()) for restart in (0, 1))
    assert first["verdict"]["exclude"] == ["n2"] and second["findings"] == []
    return text


def test_a_slow_node_is_excluded_and_the_run_goes_on_on_another(tools: Path, slurm: PrivateSlurm) -> None:
    write_tool(tools / "mose-cluster", f'[ "$1" = preflight ] || exec {PROGRAMS}/mose-cluster "$@"\n{MEASURING}')
    text = log_without_n2(slurm, launch({}))
    assert "preflight: n2: device 0: matrix products at 1 GFLOP/s, 10% of the others' median of 10 GFLOP/s" in text


@pytest.mark.soak
def test_a_node_that_does_not_answer_is_excluded(tools: Path, slurm: PrivateSlurm) -> None:
    """With what really measures, by torch and gloo; on n2 it is stopped, so that no signal but SIGKILL ends it."""
    stopped = f'[ "$1$SLURMD_NODENAME" = preflightn2 ] && kill -STOP $$\nexec {PROGRAMS}/mose-cluster "$@"'
    write_tool(tools / "mose-cluster", stopped)
    # What else this machine does must not decide.
    text = log_without_n2(slurm, launch({"seconds": 60, "slow_fraction": 0, "run_gib": 0, "temporary_gib": 0}))
    assert "preflight: n2: did not answer within 60 s: 1 of 1 processes printed nothing" in text
