"""Jobs on a real SLURM of three virtual nodes: launched, warned, requeued, resumed; nodes that die, ranks that stop, crash loops.

One training run through the whole way; everything else with a stand-in for the trainer, which writes the same files within
milliseconds, so that a drill takes seconds.
"""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mose.config import save_config
from mose.files.atomic_file import write_json
from tests.cluster.drills.launched import ROOT, back_from, ends, lasting, launch, log_of, starts, step_of
from tests.cluster.private_slurm import PrivateSlurm, wait_for
from tests.datasets import make_dataset
from tests.pretrain.cells import tiny_config

STEPS = 100


def test_a_run_that_is_warned_is_queued_again_and_ends_like_an_undisturbed_one(folder: Path, slurm: PrivateSlurm) -> None:
    """Two nodes through the deepspeed launcher, one node of two ranks through srun: the same layout, the same metrics."""
    config = tiny_config(make_dataset(folder, rows=100, sequence_length=48, seed=1), micro_batch_rows=2)
    save_config(config, folder / "run.yaml")
    options = ["--intervals.log_every_steps=1", "--intervals.checkpoint_every_steps=50", "--intervals.heartbeat_seconds=1"]
    text = (folder / "run.yaml").read_text().replace("max_steps: 20", f"max_steps: {STEPS}")
    (folder / "run.yaml").write_text(text)
    calm = launch("pretrain", folder / "run.yaml", "calm", nodes=1, ranks_per_node=2, options=options, launcher="srun")
    number = launch("pretrain", folder / "run.yaml", "warned", nodes=2, ranks_per_node=1, options=options)
    wait_for(lambda: step_of("warned") >= 2, "the first steps", 600)
    slurm.call("scancel", "--signal=USR1", "--batch", number)
    wait_for(lambda: slurm.job(number).get("Restarts") == "1", f"a requeue: {log_of(number)}", 400)
    assert slurm.wait_state(number, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log_of(number)
    assert slurm.wait_state(calm, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log_of(calm)
    assert [start.cause for start in starts("warned")] == ["stopped", "finished"]
    resumed = starts("warned")[1]
    # Which two of the three nodes depends on what SLURM has done with the other job by then.
    assert 2 <= resumed.first_step < STEPS and len(set(resumed.nodes)) == 2
    assert lasting("warned") == lasting("calm")
    assert {line["step"] for line in lasting("warned")} == set(range(1, STEPS + 1))
    # Printed, not asserted: from the moment at which SLURM gives the job back to the first step, imports included.
    print(f"recovered in {resumed.trained - resumed.started:.1f} s")
    assert resumed.trained > resumed.started


@pytest.fixture
def drill(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`mose-pretrain` is a stand-in."""
    (folder / "tools").mkdir()
    (folder / "tools/mose-pretrain").write_text(
        f'#!/bin/sh\nexec {sys.executable} -S {ROOT}/tests/cluster/drills/stand_in_trainer.py "$@"\n'
    )
    (folder / "tools/mose-pretrain").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'tools'}:{os.environ['PATH']}")
    (folder / "run.yaml").write_text(json.dumps({"max_steps": 40}))
    return folder


def play(slurm: PrivateSlurm, faults: list[dict[str, Any]], nodes: int = 2, **more: Any) -> str:
    """Launch the stand-in on two nodes with these faults; returns the job's number."""
    Path("faults.json").write_text(json.dumps(faults))
    return launch("pretrain", Path("run.yaml"), "run", nodes=nodes, ranks_per_node=1, launcher="srun", **more)


def kept_steps() -> list[int]:
    """The steps of the metrics as a resumed trainer would keep them: later lines replace earlier ones of the same step."""
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return sorted({line["step"] for line in lines})


def test_a_failure_is_queued_again(drill: Path, slurm: PrivateSlurm) -> None:
    number = play(slurm, [{"rank": 1, "step": 15, "kind": "exit 9"}])
    back_from(slurm, number, 1)
    ends(slurm, number)
    assert [(start.cause, start.first_step) for start in starts("run")] == [("failed", 0), ("finished", 10)]
    assert starts("run")[0].last_step >= 10
    assert kept_steps() == list(range(1, 41))


def test_a_crash_loop_stops_and_says_so(drill: Path, slurm: PrivateSlurm) -> None:
    number = play(slurm, [{"rank": 1, "step": 15, "kind": "exit 9", "always": True}], recovery={"same_step_failures": 2})
    ends(slurm, number, "FAILED")
    assert [start.cause for start in starts("run")] == ["failed", "failed", "failed"]
    assert "a crash loop, 2 failures in a row after step 10; started again it would stop again" in log_of(number)


def test_a_rank_that_is_stopped_is_found_and_the_run_comes_back(drill: Path, slurm: PrivateSlurm) -> None:
    number = play(slurm, [{"rank": 1, "step": 15, "kind": "stop"}], recovery={"hang_seconds": 5, "stacks_seconds": 2})
    ends(slurm, number)
    hung, finished = starts("run")
    assert (hung.cause, hung.suspects, finished.cause) == ("hung", ("n2",), "finished")
    # SLURM lets a stopped process go on before it kills it, so that a few more steps may be done and saved.
    assert finished.first_step >= 10
    assert "in 'forward' of step 16; rank 1 (n2) wrote no stack: stopped, or inside the kernel; the others at" in log_of(number)
    assert "stand_in_trainer.py" in Path(f"run/launch/stacks-{number}-0/rank-00000.txt").read_text()
    assert "stand_in_trainer.py" in Path(f"run/launch/stacks-{number}-0/rank-00001.txt").read_text()
    assert kept_steps() == list(range(1, 41))


def test_a_node_that_dies_is_replaced(drill: Path, slurm: PrivateSlurm) -> None:
    """SLURM itself queues the job again; the third node takes the place of the dead one."""
    (drill / "run.yaml").write_text(json.dumps({"max_steps": 400}))
    number = play(slurm, [])
    wait_for(lambda: step_of("run") >= 15, "some steps", 200)
    slurm.kill_node("n2")
    try:
        back_from(slurm, number, 1)
        ends(slurm, number)
        assert starts("run")[-1].nodes == ("n1", "n3") and starts("run")[-1].first_step >= 10
        assert kept_steps() == list(range(1, 401))
    finally:
        slurm.start_node("n2")
        wait_for(lambda: slurm.call("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D") == "3", "three idle nodes", 200)


def test_a_preempted_run_saves_and_comes_back(drill: Path, slurm: PrivateSlurm) -> None:
    (drill / "run.yaml").write_text(json.dumps({"max_steps": 400}))
    number = play(slurm, [])
    wait_for(lambda: step_of("run") >= 15, "some steps", 200)
    urgent = slurm.call("sbatch", "--parsable", "--partition=high", "--nodes=3", "--output=/dev/null", "--wrap=sleep 1")
    slurm.wait_state(urgent, "COMPLETED", seconds=300)
    back_from(slurm, number, 1)
    ends(slurm, number)
    assert starts("run")[0].cause == "stopped"
    assert starts("run")[-1].first_step >= 10 and kept_steps() == list(range(1, 401))


def test_a_second_launch_is_refused_while_the_first_lives(drill: Path, slurm: PrivateSlurm) -> None:
    (drill / "run.yaml").write_text(json.dumps({"max_steps": 4000}))
    number = play(slurm, [])
    command = [sys.executable, "-m", "cluster.cli", "launch", "pretrain", "--config", "run.job.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"run: job {number} (" in done.stderr and f"expected it to end first: scancel {number}" in done.stderr
    wait_for(lambda: step_of("run") >= 1, "the first step", 200)
    shown = subprocess.run([sys.executable, "-m", "cluster.cli", "status", "run", "--json"], capture_output=True, check=True)
    (run,) = json.loads(shown.stdout)
    assert (run["state"], run["note"], run["max_steps"]) == ("running", f"job {number} on n[1-2]", 4000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--job.partition", "nowhere"), "sbatch: sbatch: error: invalid partition specified: nowhere"),
        (
            ("--job.sbatch_options", '["--nodelist=n7,n8"]'),
            "sbatch: sbatch: error: Batch job submission failed: Invalid node name specified",
        ),
    ],
)
def test_what_sbatch_refuses_is_one_line(drill: Path, slurm: PrivateSlurm, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(AssertionError) as refused:
        launch("pretrain", Path("run.yaml"), "run", *words, nodes=2, ranks_per_node=1)
    line = refused.value.args[0].partition("\nassert")[0]
    assert message.lower() in line.lower()
    assert slurm.call("squeue", "-h") == ""


# Ten steps and a checkpoint apart.
KINDS = ("exit 9", "stop", "warn", "exit 9", "sleep", "preempt", "exit 9", "stop", "warn", "node")
FAULTS = KINDS * 3
RESULTS = "MOSE_DRILL_RESULTS"


@pytest.mark.soak
def test_thirty_faults_of_all_kinds_in_one_run(drill: Path, slurm: PrivateSlurm) -> None:
    """With MOSE_DRILL_RESULTS=FILE in the environment, what happened is written there as JSON."""
    made = [{"rank": number % 2, "step": 10 * number + 5, "kind": kind} for number, kind in enumerate(FAULTS)]
    held = [fault | {"kind": "hold"} if fault["kind"] in ("warn", "preempt", "node") else fault for fault in made]
    (drill / "run.yaml").write_text(json.dumps({"max_steps": 10 * len(FAULTS) + 10}))
    recovery = {"hang_seconds": 5, "stacks_seconds": 2, "node_failures": 99}
    number = play(slurm, held, recovery=recovery, max_restarts=99)
    for count, fault in enumerate(made, start=1):
        wait_for((drill / f"fault-{count - 1}").exists, f"fault {count}: {log_of(number)}", 400)
        node = ""
        if fault["kind"] == "warn":
            slurm.call("scancel", "--signal=USR1", "--batch", number)
        elif fault["kind"] == "preempt":
            slurm.call("sbatch", "--partition=high", "--nodes=3", "--output=/dev/null", "--wrap=sleep 1")
        elif fault["kind"] == "node":
            node = starts("run")[-1].nodes[1]
            slurm.kill_node(node)
        back_from(slurm, number, count)
        if node:
            slurm.start_node(node)
    ends(slurm, number)
    happened = starts("run")
    assert kept_steps() == list(range(1, 10 * len(FAULTS) + 11))
    assert happened[-1].cause == "finished" and len(happened) == len(FAULTS) + 1
    assert {start.cause for start in happened} >= {"failed", "hung", "stopped", "finished"}
    # From the first line of the new start to its first step.
    back = [start.trained - start.started for start in happened if start.trained]
    assert max(back) < 60
    if RESULTS in os.environ:
        causes = [f"{fault['kind']} of rank {fault['rank']}: {start.cause}" for fault, start in zip(made, happened, strict=False)]
        facts = {
            "faults": causes,
            "seconds_from_start_to_first_step": [round(one, 2) for one in back],
            "steps": len(kept_steps()),
        }
        machine = {"nodes": "three virtual nodes of one machine of two cores", "trainer": "stand-in", "seeds": []}
        write_json(Path(os.environ[RESULTS]), {"date": datetime.date.today().isoformat(), **machine, **facts})
