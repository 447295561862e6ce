"""Faults in the middle of steps of the real trainer on a real SLURM: every row of every step compared with an undisturbed run.

Minutes, because each start imports torch and deepspeed: `make soak`. With MOSE_TRAINER_DRILL_RESULTS=FILE in the environment,
what happened in the runs of many faults is written there as JSON.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.supervise.history import Start
from mose.config import save_config
from mose.files.atomic_file import write_json
from tests.cluster.drills.launched import back_from, ends, lasting, launch, log_of, starts
from tests.cluster.drills.traces import (
    RANKS,
    check_rows,
    files_of_last_checkpoint,
    install_trainer,
    kept_rows,
    seconds_to_first_step,
)
from tests.cluster.private_slurm import PrivateSlurm, wait_for
from tests.datasets import make_dataset
from tests.pretrain.cells import tiny_config

pytestmark = pytest.mark.soak

RESULTS = "MOSE_TRAINER_DRILL_RESULTS"
DATASET_ROWS = 100
# Ten steps and a checkpoint apart.
KINDS = ("exit 9", "stop", "warn", "exit 9", "sleep", "preempt", "exit 9", "stop", "warn", "node")
# A slow machine may need some seconds for a step; the fault must be a hang, and nothing else.
RECOVERY = {"hang_seconds": 15, "stacks_seconds": 4, "node_failures": 99}


@pytest.fixture
def trainer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`mose-pretrain` records its rows and fails on demand; `run.yaml` is a tiny run."""
    install_trainer(folder, monkeypatch)
    dataset = make_dataset(folder, rows=DATASET_ROWS, sequence_length=48, seed=1)
    save_config(tiny_config(dataset, micro_batch_rows=2), folder / "run.yaml")
    return folder


def play(output: str, steps: int, faults: list[dict[str, Any]], recovery: dict[str, Any] = RECOVERY, **more: Any) -> str:
    """Launch the trainer on two nodes with these faults; returns the job's number."""
    Path(f"{output}.faults.json").write_text(json.dumps(faults))
    text = Path("run.yaml").read_text().replace("max_steps: 20", f"max_steps: {steps}")
    Path(f"{output}.yaml").write_text(text)
    options = ["--intervals.log_every_steps=1", "--intervals.checkpoint_every_steps=10", "--intervals.heartbeat_seconds=1"]
    more = {"launcher": "srun", "max_restarts": 99, **more}
    return launch(
        "pretrain", Path(f"{output}.yaml"), output, nodes=2, ranks_per_node=1, options=options, recovery=recovery, **more
    )


def make_happen(slurm: PrivateSlurm, number: str, kind: str) -> str:
    """What comes from outside while a rank holds in mid-step; returns the node that was killed, if any."""
    if kind == "warn":
        slurm.call("scancel", "--signal=USR1", "--batch", number)
    elif kind == "preempt":
        slurm.call("sbatch", "--partition=high", "--nodes=3", "--output=/dev/null", "--wrap=sleep 1")
    elif kind == "node":
        node = starts("run")[-1].nodes[1]
        slurm.kill_node(node)
        return node
    return ""


def write_results(made: list[dict[str, Any]], history: list[Start], steps: int, launcher: str) -> None:
    facts = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"three virtual nodes of one machine, {os.cpu_count()} cores, {platform.machine()}",
        # Other work on the machine makes imports, most of a start, slower.
        "load_average": round(os.getloadavg()[2], 1),
        "trainer": f"mose-pretrain, two ranks on two nodes, {launcher}",
        "seeds": [3],
        "steps": steps,
        "faults": [f"{fault['kind']} of rank {fault['rank']} in step {fault['step'] + 1}" for fault in made],
        "causes": [start.cause for start in history],
        "first_steps": [start.first_step for start in history],
        "seconds_from_start_to_first_step": [round(seconds, 1) for seconds in seconds_to_first_step("run")],
        "minutes": round((history[-1].ended - history[0].started) / 60, 1),
        "rows_of_every_step_equal": True,
        "metrics_and_last_checkpoint_equal": True,
    }
    path = Path(os.environ[RESULTS])
    write_json(path, {**(json.loads(path.read_text()) if path.exists() else {}), launcher: facts})


@pytest.mark.parametrize(("launcher", "rounds"), [("srun", 3), ("deepspeed", 1)])
def test_faults_of_all_kinds_in_one_run_leave_no_trace(launcher: str, rounds: int, trainer: Path, slurm: PrivateSlurm) -> None:
    kinds = KINDS * rounds
    steps = 10 * len(kinds) + 10
    made = [{"rank": number % RANKS, "step": 10 * number + 5, "kind": kind} for number, kind in enumerate(kinds)]
    held = [fault | {"kind": "hold"} if fault["kind"] in ("warn", "preempt", "node") else fault for fault in made]
    ends(slurm, play("calm", steps, []))
    number = play("run", steps, held, launcher=launcher)
    for count, fault in enumerate(made, start=1):
        wait_for((trainer / f"run.fault-{count - 1}").exists, f"fault {count}: {log_of(number)}", 400)
        killed = make_happen(slurm, number, str(fault["kind"]))
        back_from(slurm, number, count)
        if killed:
            slurm.start_node(killed)
    ends(slurm, number)
    history = starts("run")
    assert history[-1].cause == "finished" and len(history) == len(made) + 1
    assert {start.cause for start in history} >= {"failed", "hung", "stopped", "finished"}
    check_rows("run", steps, DATASET_ROWS)
    assert lasting("run") == lasting("calm")
    assert files_of_last_checkpoint("run") == files_of_last_checkpoint("calm")
    # Printed, not asserted: most of it is imports, which other work on the machine makes slower.
    print("seconds from the start to the first step:", [round(seconds, 1) for seconds in seconds_to_first_step("run")])
    if RESULTS in os.environ:
        write_results(made, history, steps, launcher)


def test_a_crash_loop_stops_and_a_second_launch_is_refused_meanwhile(trainer: Path, slurm: PrivateSlurm) -> None:
    ends(slurm, play("calm", 20, []))
    fault = {"rank": 1, "step": 15, "kind": "exit 9", "always": True}
    number = play("run", 20, [fault], recovery={**RECOVERY, "same_step_failures": 2})
    command = [sys.executable, "-m", "cluster.cli", "launch", "pretrain", "--config", "run.job.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"run: job {number} (" in done.stderr and f"expected it to end first: scancel {number}" in done.stderr
    ends(slurm, number, "FAILED")
    assert [start.cause for start in starts("run")] == ["failed", "failed", "failed"]
    assert "a crash loop, 2 failures in a row after step 10; started again it would stop again" in log_of(number)
    # What each of the three starts did before step 16 had the same rows as in the undisturbed run.
    assert kept_rows("run", starts("run"), 15) == kept_rows("calm", starts("calm"), 20)[:15]
