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


def test_a_slow_node_is_excluded_and_the_run_goes_on_on_another(
    tmp_path: Path, slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not slurm.namespaces:
        pytest.skip("this user may not give a node its own host name (unshare --user --uts), so that ranks cannot meet")
    monkeypatch.chdir(tmp_path)
    tools = tmp_path / "tools"
    write_tool(tools / "mose-pretrain", f'exec {sys.executable} -S {ROOT}/tests/cluster/stand_in_trainer.py "$@"')
    write_tool(tools / "mose-cluster", f'[ "$1" = preflight ] || exec {PROGRAMS}/mose-cluster "$@"\n{MEASURING}')
    for name, value in {**slurm.environment, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tools}:{PROGRAMS}:{os.environ['PATH']}")
    job = {"name": "drill", "time_limit": "30", "cpus_per_task": 2}
    config = {"run_config": "run.yaml", "output": "run", "nodes": 2, "gpus_per_node": 0, "ranks_per_node": 1, "launcher": "srun"}
    Path("run.yaml").write_text(json.dumps({"max_steps": 20}))
    Path("job.json").write_text(json.dumps(config | {"job": job}))
    command = [sys.executable, "-m", "cluster.cli", "launch", "pretrain", "--config", "job.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    number = done.stdout.split()[-1]
    log = tmp_path / f"logs/drill-{number}.log"
    found = slurm.wait_state(number, "COMPLETED", "FAILED", "CANCELLED", seconds=400)
    assert (found["JobState"], found["ExcNodeList"]) == ("COMPLETED", "n2"), log.read_text()
    history = History(RunDirectory(Path("run")).launch).read()
    assert [(start.cause, start.suspects) for start in history] == [(CHECKED, ("n2",)), (FINISHED, ())]
    assert [start.nodes for start in history] == [("n1", "n2"), ("n1", "n3")]
    text = log.read_text()
    assert "preflight: n2: device 0: matrix products at 1 GFLOP/s, 10% of the others' median of 10 GFLOP/s" in text
    assert "queued again after 0 restarts after its preflight, without n2" in text
    first, second = (json.loads(Path(f"run/launch/preflight-{number}-{restart}.json").read_text()) for restart in (0, 1))
    assert first["verdict"]["exclude"] == ["n2"] and second["findings"] == []
