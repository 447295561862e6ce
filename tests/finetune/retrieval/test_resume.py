"""A retrieval run that was killed or stopped at any step, and resumed, ends with the undisturbed run's metrics and weights."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.checkpoints import AUTO, LATEST_NAME, MANIFEST_NAME, STATE_NAME
from finetune.config import RetrievalConfig
from finetune.retrieval.train import train
from finetune.retrieval.trainer import Trainer
from finetune.retrieval.validation import Validation
from mose.errors import MoseError
from mose.run_directory import RunDirectory
from tests.finetune.interruptions import Killed, at_step, die, lines_but_speed

STEPS = 9


@pytest.fixture(scope="module")
def config(checkpoint: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RetrievalConfig:
    """Dropout, augmentation and validation on; no interval is a multiple of another."""
    return RetrievalConfig(
        checkpoint=str(checkpoint),
        pairs=str(pairs_file),
        output=str(tmp_path_factory.mktemp("undisturbed") / "run"),
        steps=STEPS,
        batch_pairs=12,
        chunk_pairs=4,
        learning_rate=3e-3,
        log_every_steps=4,
        checkpoint_every_steps=3,
        validate_every_steps=2,
        device="cpu",
    )


@pytest.fixture(scope="module")
def undisturbed(config: RetrievalConfig) -> RunDirectory:
    assert train(config)
    return RunDirectory(Path(config.output))


def ends(run: RunDirectory) -> tuple[Any, ...]:
    """What must be equal: every line but its speed, and the weights of both exported folders."""
    weights = [(run.path / name / "model.safetensors").read_bytes() for name in ("checkpoint", "best")]
    return lines_but_speed(run), weights


def test_killed_five_times_and_resumed_is_bit_equal(
    config: RetrievalConfig, undisturbed: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = replace(config, output=str(tmp_path / "run"))
    for step in (1, 4, 4, 6, 8):
        with monkeypatch.context() as patch:
            at_step(patch, Trainer, step, die)
            with pytest.raises(Killed):
                train(config, AUTO)
    # What a process leaves that is killed while it writes a checkpoint.
    left_over = RunDirectory(tmp_path / "run").checkpoints / ".step-000009.0123.partial"
    left_over.mkdir()
    assert train(config, AUTO)
    assert not left_over.exists()
    assert ends(RunDirectory(tmp_path / "run")) == ends(undisturbed)


@pytest.mark.parametrize("step", [0, 4, 6])
def test_a_signal_saves_and_the_resumed_run_is_bit_equal(
    config: RetrievalConfig,
    undisturbed: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
):
    config = replace(config, output=str(tmp_path / "run"))
    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        at_step(patch, Trainer, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not train(config, AUTO)
    assert f"stopped by a signal after step {step + 1}; the same command resumes it" in capsys.readouterr().err
    assert (run.checkpoints / LATEST_NAME).read_text().strip() == f"step-{step + 1:06d}"
    assert not (run.path / "checkpoint").exists()
    assert train(config, AUTO)
    assert ends(run) == ends(undisturbed)


def test_the_best_validation_is_kept_and_exported(config: RetrievalConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mrr = iter([0.2, 0.9, 0.3, 0.4, 0.5])
    monkeypatch.setattr(Validation, "_mrr", lambda *_: next(values))
    values = iter([value for value in mrr for _ in range(3)])
    assert train(replace(config, output=str(tmp_path / "run"), keep_last_checkpoints=1))
    run = RunDirectory(tmp_path / "run")
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [LATEST_NAME, "step-000004", "step-000009"]
    assert (run.path / "best" / "model.safetensors").read_bytes() != (run.path / "checkpoint" / "model.safetensors").read_bytes()
    found = {line["step"]: line["validation/mrr"] for line in run.read_metrics() if "validation/mrr" in line}
    assert found == pytest.approx({2: 0.2, 4: 0.9, 6: 0.3, 8: 0.4, 9: 0.5})


def copied(undisturbed: RunDirectory, tmp_path: Path) -> RunDirectory:
    shutil.copytree(undisturbed.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_a_finished_run_is_left_as_it_is(config: RetrievalConfig, undisturbed: RunDirectory, tmp_path: Path):
    run = copied(undisturbed, tmp_path)
    assert train(replace(config, output=str(run.path)), AUTO)
    assert ends(run) == ends(undisturbed)


@pytest.mark.parametrize("name", [STATE_NAME, MANIFEST_NAME])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    config: RetrievalConfig, undisturbed: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    run = copied(undisturbed, tmp_path)
    for exported in ("checkpoint", "best"):
        shutil.rmtree(run.path / exported)
    path = run.checkpoint(STEPS) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert train(replace(config, output=str(run.path)), AUTO)
    warning = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning"))
    assert str(path) in warning and warning.endswith("the checkpoint before is taken")
    assert ends(run) == ends(undisturbed)
    assert (run.checkpoints / f"damaged-step-{STEPS:06d}").is_dir()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"learning_rate": 0.5}, r"learning_rate: saved with 0\.003, now 0\.5; expected the same, or a new output"),
        ({"seed": 3}, r"seed: saved with 0, now 3"),
    ],
)
def test_another_runs_checkpoint_is_refused(
    config: RetrievalConfig, undisturbed: RunDirectory, tmp_path: Path, change: dict[str, Any], expected: str
):
    run = copied(undisturbed, tmp_path)
    with pytest.raises(MoseError, match=expected):
        train(replace(config, output=str(run.path), **change), AUTO)
    assert ends(run) == ends(undisturbed)


def test_checkpoints_that_are_gone_or_all_damaged_are_named(config: RetrievalConfig, undisturbed: RunDirectory, tmp_path: Path):
    run = copied(undisturbed, tmp_path)
    config = replace(config, output=str(run.path))
    for path in run.checkpoints.glob("step-*"):
        (path / MANIFEST_NAME).write_text("{}")
    with pytest.raises(MoseError, match=r"none of step-000009, .* is whole; expected one, or a new directory as output"):
        train(config, AUTO)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(MoseError, match="checkpoints: step-000009 was saved and is missing; expected it back"):
        train(config, AUTO)
