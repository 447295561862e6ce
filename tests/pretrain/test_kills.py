"""Covers SIGKILL at the worst moments of saving and at random ones: the resumed run ends with the undisturbed run's bytes.

The user pains it stands for: "half-written or corrupted checkpoints" and "loss differs after resume". Metrics are compared as
they stand, weights and optimiser states by the checksums of the last checkpoint's files. `make soak` kills fifty times.
"""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from mose.config import save_config
from mose.run_directory import RunDirectory
from pretrain.checkpoints.files import latest_checkpoint, read_checkpoint_manifest
from pretrain.monitoring.metrics import TIMING_KEYS
from tests.pretrain.cells import tiny_config
from tests.pretrain.forked import POINTS, Trouble, run_forked, succeeds

KILLED = -9


def words(config: Path, output: Path, steps: int) -> tuple[object, ...]:
    intervals = ("--intervals.log_every_steps", 1, "--intervals.checkpoint_every_steps", 2, "--intervals.validate_every_steps", 5)
    keep = ("--intervals.keep_last_checkpoints", 2)
    return ("train", "--config", config, "--output", output, "--max_steps", steps, *intervals, *keep)


def lasting(output: Path) -> list[dict[str, Any]]:
    """Every line of metrics without what tells how fast the machine was."""
    lines = RunDirectory(output).read_metrics()
    return [{name: value for name, value in line.items() if name not in TIMING_KEYS} for line in lines]


def last_manifest(output: Path) -> dict[str, Any]:
    latest = latest_checkpoint(RunDirectory(output).checkpoints)
    assert latest is not None
    return read_checkpoint_manifest(latest)


def assert_same_end(calm: Path, killed: Path) -> None:
    assert lasting(killed) == lasting(calm)
    assert last_manifest(killed)["progress"] == last_manifest(calm)["progress"]
    assert last_manifest(killed)["files"] == last_manifest(calm)["files"]


def calm_run(dataset: Path, folder: Path, steps: int, precision: str) -> tuple[Path, Path]:
    config = folder / "config.yaml"
    save_config(tiny_config(dataset, micro_batch_rows=2, precision=precision), config)
    succeeds(*words(config, folder / "calm", steps))
    return config, folder / "calm"


@pytest.mark.parametrize(
    ("precision", "kills"),
    [
        ("fp32", (Trouble("inside a part"), Trouble("before the rename", 2), Trouble("inside pruning"))),
        ("bf16", (Trouble("before latest", 2),)),
    ],
    ids=["fp32", "bf16"],
)
def test_killed_inside_saving_and_resumed_ends_with_the_same_bytes(
    precision: str, kills: tuple[Trouble, ...], dataset: Path, tmp_path: Path
) -> None:
    config, calm = calm_run(dataset, tmp_path, 10, precision)
    for trouble in kills:
        outcome = run_forked(*words(config, tmp_path / "killed", 10), trouble=trouble)
        assert outcome.code == KILLED, outcome.output[-2000:]
    succeeds(*words(config, tmp_path / "killed", 10))
    assert_same_end(calm, tmp_path / "killed")


@pytest.mark.soak
def test_fifty_kills_each_resumed_end_with_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    steps, wanted = 40, 50
    config, calm = calm_run(dataset, tmp_path, steps, "fp32")
    whole = run_forked(*words(config, tmp_path / "timed", steps)).seconds
    rng, kills, points = random.Random(5), 0, itertools.cycle(POINTS)
    for course in itertools.count():
        output, finished = tmp_path / f"killed-{course}", False
        while kills < wanted and not finished:
            if rng.random() < 0.5:
                outcome = run_forked(*words(config, output, steps), kill_after_seconds=rng.uniform(0.2, 1) * whole)
            else:
                outcome = run_forked(*words(config, output, steps), trouble=Trouble(next(points), rng.randint(1, 3)))
            assert outcome.code in (0, KILLED), outcome.output[-2000:]
            finished, kills = outcome.code == 0, kills + (outcome.code == KILLED)
        succeeds(*words(config, output, steps))
        assert_same_end(calm, output)
        if kills == wanted:
            return
