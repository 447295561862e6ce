"""Jobs of drills: launched as a user launches them, and what their run directories say afterwards."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.supervise.history import History, Start
from mose.run_directory import RunDirectory
from pretrain.monitoring.metrics import TIMING_KEYS
from tests.cluster.private_slurm import PrivateSlurm, wait_for

ROOT = Path(__file__).parents[3]
SHORT = {"name": "drill", "time_limit": "30", "cpus_per_task": 2}


def launch(stage: str, config: Path, output: str, *words: str, recovery: dict[str, Any] | None = None, **more: Any) -> str:
    """`mose-cluster launch`; returns the job's number."""
    job = {"run_config": str(config), "gpus_per_node": 0, "job": SHORT, "output": output, "preflight": {"enabled": False}, **more}
    job["recovery"] = {"stacks_seconds": 5, **(recovery or {})}
    Path(f"{output}.job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "cluster.cli", "launch", stage, "--config", f"{output}.job.json", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def log_of(number: str) -> str:
    path = Path(f"logs/drill-{number}.log")
    return path.read_text(errors="replace")[-6000:] if path.exists() else "no log"


def starts(output: str) -> list[Start]:
    return History(RunDirectory(Path(output)).launch).read()


def lasting(output: str) -> list[dict[str, Any]]:
    """Every line of metrics without what tells how fast the machine was."""
    lines = RunDirectory(Path(output)).read_metrics()
    return [{name: value for name, value in line.items() if name not in TIMING_KEYS} for line in lines]


def step_of(output: str) -> int:
    """The last step in the metrics; 0 before the first."""
    path = RunDirectory(Path(output)).metrics
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines[-1:] if line.endswith("}")), default=0)


def back_from(slurm: PrivateSlurm, number: str, restarts: int) -> None:
    """Wait for a requeue."""
    wait_for(lambda: slurm.job(number).get("Restarts") == str(restarts), f"a requeue: {log_of(number)}", 300)


def ends(slurm: PrivateSlurm, number: str, state: str = "COMPLETED") -> None:
    found = slurm.wait_state(number, "COMPLETED", "FAILED", "CANCELLED", seconds=400)
    assert found["JobState"] == state, log_of(number)
