"""Covers training checkpoints: what is kept, what `latest` names, and every way one can be broken or belong to another run.

The user pains it stands for: "half-written or corrupted checkpoints" and "a changed config resumes silently".
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mose.errors import MoseError
from pretrain.checkpoint import CheckpointStore, config_values, latest_checkpoint, read_checkpoint_manifest, step_of
from pretrain.config import DataConfig, IntervalConfig, Layout, PretrainConfig
from pretrain.parallel.context import ParallelContext
from tests.commands import command_line, refused, run_well


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def train_line(run: Path, *more: object) -> list[str]:
    return command_line("pretrain", "train", "--config", run / "config.yaml", "--output", run, *more)


def test_layout_of_a_checkpoint(finished_run: Path) -> None:
    latest = latest_checkpoint(finished_run / "checkpoints")
    assert latest is not None
    assert step_of(latest) == 6
    manifest = read_checkpoint_manifest(latest)
    assert manifest["progress"]["step"] == 6
    assert manifest["progress"]["consumed_rows"] == 6 * 8
    on_disk = {path.relative_to(latest).as_posix() for path in latest.rglob("*") if path.is_file()}
    assert on_disk == manifest["files"].keys() | {"manifest.json"}
    assert [path.name for path in (finished_run / "checkpoints").glob(".*")] == []


def test_changed_file_is_refused_by_name(run: Path) -> None:
    part = next((run / "checkpoints" / "step-000006" / "state").glob("zero_pp_rank_0*"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    line = refused(train_line(run, "--max_steps", 8))
    assert "step-000006" in line
    assert f"state/{part.name} is missing or differs from its checksum" in line


def test_missing_file_and_missing_manifest_are_refused(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-000006"
    (checkpoint / "state" / "mp_rank_00_model_states.pt").unlink()
    assert "mp_rank_00_model_states.pt is missing" in refused(train_line(run, "--max_steps", 8))
    (checkpoint / "manifest.json").unlink()
    assert "manifest.json: no such file; expected a complete checkpoint" in refused(train_line(run, "--max_steps", 8))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("--model.width", 64), "model.width = 32, this run has 64"),
        (("--seed", 4), "seed = 3, this run has 4"),
        (("--batch.micro_batch_rows", 4), "batch.micro_batch_rows = 2, this run has 4"),
    ],
)
def test_checkpoint_of_another_config_is_refused_by_field(change: tuple[str, int], field: str, run: Path) -> None:
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert field in refused(train_line(run, "--max_steps", 8, *change))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before


def test_more_steps_continue_the_run(run: Path) -> None:
    (run / "checkpoints" / ".step-000008.partial").mkdir()  # what a kill in the middle of saving leaves
    run_well(train_line(run, "--max_steps", 8))
    latest = latest_checkpoint(run / "checkpoints")
    assert latest is not None
    assert step_of(latest) == 8
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "loss/total" in line]
    assert steps == list(range(1, 9))


def identity(**changes: Any) -> dict[str, Any]:
    return config_values(PretrainConfig(**changes), "data", 1)


def test_identity_leaves_out_what_changes_no_number() -> None:
    assert identity() == identity(output="elsewhere", max_steps=7, intervals=IntervalConfig(log_every_steps=3))
    assert identity() == identity(data=DataConfig(dataset="moved"))
    assert identity() != identity(seed=1)
    assert identity() != config_values(PretrainConfig(), "other data", 1)
    assert identity() != config_values(PretrainConfig(), "data", 2)


def store_in(folder: Path) -> CheckpointStore:
    context = ParallelContext(0, 0, 0, Layout(1, 1, 1, 1), torch.device("cpu"), None, None, None)
    return CheckpointStore(folder, context, identity())


@pytest.mark.parametrize(
    ("keep_last", "permanent_every", "kept"), [(2, 0, [40, 50]), (1, 20, [20, 40, 50]), (9, 0, [10, 20, 30, 40, 50])]
)
def test_pruning_keeps_the_newest_and_the_permanent(
    keep_last: int, permanent_every: int, kept: list[int], tmp_path: Path
) -> None:
    for step in range(10, 60, 10):
        (tmp_path / f"step-{step:06d}").mkdir()
    store_in(tmp_path).prune(keep_last, permanent_every)
    assert sorted(step_of(path) for path in tmp_path.iterdir()) == kept


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert store_in(tmp_path).latest() is None
    with pytest.raises(MoseError, match=r"manifest\.json: no such file"):
        read_checkpoint_manifest(tmp_path)
