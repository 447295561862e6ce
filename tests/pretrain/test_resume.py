"""Covers resuming: killed with SIGKILL at random steps, a run ends with metrics and weights bit-equal to an undisturbed one,
and TensorBoard draws every step once.

The user pain it stands for: "resume replays or skips data" and "loss differs after resume".
"""

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mose.config import save_config
from mose.run_directory import RunDirectory
from pretrain.checkpoints.files import latest_checkpoint
from pretrain.monitoring.metrics import BY_TOKENS, TIMING_KEYS
from tests.commands import command_line, environment, launcher_line, run_well
from tests.pretrain.cells import tiny_config

STEPS = 20


@pytest.fixture(scope="module")
def config(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resume") / "config.yaml"
    save_config(tiny_config(dataset, micro_batch_rows=2), path)
    return path


def line(config: Path, output: Path, ranks: int, *more: str) -> list[str]:
    words = ["train", "--config", config, "--output", output, "--max_steps", STEPS, "--intervals.log_every_steps", 1]
    words += ["--intervals.checkpoint_every_steps", 3, "--intervals.validate_every_steps", 5, *more]
    return command_line("pretrain", *words) if ranks == 1 else launcher_line(ranks, *words)


def lasting(output: Path) -> list[dict[str, Any]]:
    """Every line of metrics without what tells how fast the machine was."""
    lines = RunDirectory(output).read_metrics()
    return [{name: value for name, value in line.items() if name not in TIMING_KEYS} for line in lines]


def last_step(output: Path) -> int:
    return max((entry["step"] for entry in RunDirectory(output).read_metrics()), default=0)


def kill_after_step(words: list[str], output: Path, step: int) -> None:
    """Start the run and kill its whole process group with SIGKILL once a step is on record."""
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while last_step(output) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=True)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("ranks", "more", "kills"),
    [(1, (), 2), pytest.param(2, ("--parallel.tensor_parallel_size", "2"), 1, marks=pytest.mark.soak)],
)
def test_killed_and_resumed_equals_undisturbed(
    ranks: int, more: tuple[str, ...], kills: int, config: Path, tmp_path: Path
) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    run_well(line(config, calm, ranks, *more))
    steps = sorted(random.Random(ranks).sample(range(2, STEPS - 8), kills))
    for step in steps:
        kill_after_step(line(config, killed, ranks, *more), killed, step)
    run_well(line(config, killed, ranks, *more))
    assert lasting(killed) == lasting(calm)
    assert [entry["step"] for entry in lasting(calm) if "loss/total" in entry] == list(range(1, STEPS + 1))
    probes = [load_file(final_checkpoint(output) / "probe.safetensors") for output in (calm, killed)]
    assert all((probes[0][name] == probes[1][name]).all() for name in probes[0])
    by_step = drawn(RunDirectory(killed).tensorboard, "loss/total")
    by_tokens = drawn(RunDirectory(killed).tensorboard / BY_TOKENS, f"{BY_TOKENS}/loss/total")
    trained = [entry for entry in lasting(calm) if "loss/total" in entry]
    assert by_step == [(entry["step"], pytest.approx(entry["loss/total"], rel=1e-6)) for entry in trained]
    assert by_tokens == [(entry["consumed_tokens"], pytest.approx(entry["loss/total"], rel=1e-6)) for entry in trained]


def drawn(folder: Path, tag: str) -> list[tuple[int, float]]:
    """The points of one scalar as TensorBoard shows them, from all event files of a folder."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def final_checkpoint(output: Path) -> Path:
    checkpoint = latest_checkpoint(RunDirectory(output).checkpoints)
    assert checkpoint is not None
    assert json.loads((checkpoint / "manifest.json").read_text())["progress"]["step"] == STEPS
    return checkpoint
