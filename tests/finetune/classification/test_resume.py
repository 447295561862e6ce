"""A classification run that was killed or stopped, and resumed, ends with the undisturbed run's metrics, scores and weights."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.checkpoints import AUTO
from finetune.classification.train import train
from finetune.classification.trainer import Trainer
from finetune.config import ClassificationConfig
from mose.errors import MoseError
from mose.run_directory import RunDirectory
from tests.finetune.interruptions import Killed, at_step, die, lines_but_speed

STEPS = 7
SAVED = ("checkpoint", "best")


def settings(checkpoint: Path, files: dict[str, Path], output: Path) -> ClassificationConfig:
    """Dropout on; no interval is a multiple of another; a rate at which the F1 of three exits goes up and down."""
    return ClassificationConfig(
        checkpoint=str(checkpoint),
        output=str(output),
        steps=STEPS,
        batch_rows=16,
        warmup_steps=0,
        learning_rate=3e-2,
        log_every_steps=4,
        checkpoint_every_steps=3,
        validate_every_steps=2,
        keep_last_checkpoints=1,
        device="cpu",
        **{name: str(path) for name, path in files.items()},
    )


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(settings(checkpoint, files, output))
    return RunDirectory(output)


@pytest.fixture
def config(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> ClassificationConfig:
    return settings(checkpoint, files, tmp_path / "run")


def ends(run: RunDirectory) -> tuple[Any, ...]:
    """What must be equal: every line but its speed, the scores, and the weights of both exported folders."""
    weights = [(run.path / name / "model.safetensors").read_bytes() for name in SAVED]
    return lines_but_speed(run), (run.path / "evaluation.json").read_text(), weights


def test_killed_three_times_stopped_once_and_resumed_is_bit_equal(
    config: ClassificationConfig,
    undisturbed: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run = RunDirectory(Path(config.output))
    for step in (1, 3, 5):
        with monkeypatch.context() as patch:
            at_step(patch, Trainer, step, die)
            with pytest.raises(Killed):
                train(config, AUTO)
    with monkeypatch.context() as patch:
        at_step(patch, Trainer, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not train(config, AUTO)
    assert "stopped by a signal after step 5; the same command resumes it" in capsys.readouterr().err
    assert not (run.path / "checkpoint").exists()
    assert train(config, AUTO)
    assert ends(run) == ends(undisturbed)
    # A run that has ended is left as it is.
    assert train(config, AUTO)
    assert ends(run) == ends(undisturbed)


def test_the_best_validation_is_exported_with_its_scores(undisturbed: RunDirectory):
    f1 = {
        line["step"]: sum(line[f"validation/f1/exit_{name}/argmax"] for name in ("01", "02", "04"))
        for line in undisturbed.read_metrics()
        if "validation/f1/exit_01/argmax" in line
    }
    assert list(f1) == [2, 4, 6, STEPS]
    facts = [json.loads((undisturbed.path / name / "facts.json").read_text()) for name in SAVED]
    assert [values["steps"] for values in facts] == [STEPS, max(f1, key=lambda step: (f1[step], -step))]
    assert facts[0]["scores"] == json.loads((undisturbed.path / "evaluation.json").read_text())
    exits = facts[1]["scores"]["validation"]["exits"].values()
    assert sum(scores["argmax"]["f1"] for scores in exits) == pytest.approx(max(f1.values()))


def test_another_runs_checkpoint_is_refused(config: ClassificationConfig, files: dict[str, Path], undisturbed: RunDirectory):
    config = replace(config, output=str(undisturbed.path))
    with pytest.raises(MoseError, match=r"seed: saved with 0, now 3; expected the same, or a new output"):
        train(replace(config, seed=3), AUTO)
    with pytest.raises(MoseError, match=r"train: saved with \['[0-9a-f]{64}'\], now \['[0-9a-f]{64}'\]"):
        train(replace(config, train=str(files["test"])), AUTO)
    with pytest.raises(MoseError, match="holds another run"):
        train(config)
