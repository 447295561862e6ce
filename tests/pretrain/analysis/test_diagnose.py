"""Covers `mose-pretrain diagnose`: a run's checkpoint gives the losses that the run validated to, a JSON file and a picture."""

import json
import shutil
from pathlib import Path

import pytest

from mose.command import run_command
from mose.run_directory import RunDirectory
from pretrain.cli import commands

HELD_OUT_ROWS = 10


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("diagnosed") / "run"
    shutil.copytree(finished_run, copy)
    return copy


def diagnosed(run: Path, *words: object) -> int:
    return run_command("mose-pretrain", "", commands(), ["diagnose", str(run), *map(str, words)])


def test_losses_are_those_that_the_run_validated_to(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnosed(run, "--rows", HELD_OUT_ROWS) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "gradients on the shared trunk" in shown
    assert "what the run has learnt so far" in shown and "exit 04 masked tokens" in shown and "clipped steps" in shown
    report = json.loads((run / "diagnose" / "step-000006" / "exit_gradients.json").read_text())
    (validated,) = [line for line in RunDirectory(run).read_metrics() if "validation/loss/exit_01/mlm" in line]
    watched = {finding["name"]: finding for finding in report["learning"]}
    assert watched["exit 01 masked tokens"]["value"] == f"{validated['validation/loss/exit_01/mlm']:.3f} nats"
    assert "optimizer/update_ratio/heads" in watched
    names = [name for name in validated if name.startswith("validation/")]
    assert len(names) == 12
    for name in names:
        assert report[name.removeprefix("validation/")] == pytest.approx(validated[name], rel=1e-5)
    assert report["blocks"] == ["embedding", "1", "2", "3", "4", "norm"]
    assert report["norm_by_block"]["02"][3:] == [0.0, 0.0, 0.0]
    assert report["cosine_by_block"]["3"]["04"] == {"01": None, "02": None, "04": pytest.approx(1.0)}
    assert (run / "diagnose" / "step-000006" / "exit_gradients.png").read_bytes().startswith(b"\x89PNG")


def test_an_earlier_step_and_training_rows(run: Path) -> None:
    assert diagnosed(run, "--step", 2, "--rows", 3, "--split", "train") == 0
    report = json.loads((run / "diagnose" / "step-000002" / "exit_gradients.json").read_text())
    assert (report["step"], report["split"]) == (2, "train")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--step", "99"), "checkpoints: holds no step-000099"),
        (("--rows", "0"), "--rows: 0, expected 1 or more"),
        (("--split", "dev"), "--split: dev of the run's data has no rows"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], expected: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnosed(run, *words) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnosed(tmp_path) == 2
    assert "config.yaml" in capsys.readouterr().err
