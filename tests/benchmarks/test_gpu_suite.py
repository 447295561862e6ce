"""Covers the GPU suite's rehearsal on the CPU: every part that needs no compiler runs, checks hold, a wrong kernel is seen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_parts import correctness
from benchmarks.gpu_parts.rows import DrawnRows, drawn_batches

ROOT = Path(__file__).parents[2]
PARTS = (
    "attention",
    "model",
    "optimizer",
    "micro_batches",
    "padding",
    "exits",
    "attention_backends",
    "activation_checkpointing",
    "head_widths",
)


def test_the_rehearsal_goes_through_and_writes_what_it_measured(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--output", str(output), "--parts", *PARTS]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    figures = json.loads(output.read_text())
    assert figures["failed"] == []
    assert len(figures["checks"]) == 13
    assert set(PARTS[3:]) <= figures.keys()
    assert figures["padding"]["faithful"]["unpadded"]["loss"] == pytest.approx(
        figures["padding"]["faithful"]["padded"]["loss"], rel=0.02
    )
    assert figures["exits"]["every"]["loss"] > figures["exits"]["one"]["loss"]


def test_what_no_time_is_left_for_is_named(tmp_path: Path) -> None:
    from benchmarks.gpu_suite import measure

    figures = measure(torch.device("cpu"), -1.0, ("attention", "exits"))
    assert {"attention: no time left", "exits: no time left"} <= set(figures["left_out"])


def test_a_wrong_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = correctness.attention, []

    def shifted_the_second_time(*inputs: object) -> torch.Tensor:
        calls.append(inputs)
        out_NHK: torch.Tensor = right(*inputs)  # type: ignore[arg-type]
        return out_NHK if len(calls) == 1 else out_NHK.roll(1, dims=0)

    monkeypatch.setattr(correctness, "attention", shifted_the_second_time)
    assert not all(check.passed for check in correctness.check_attention(torch.device("cpu")))


def test_not_a_number_does_not_pass() -> None:
    assert not correctness.Check("loss", float("nan"), 1.0).passed


@pytest.mark.parametrize(("mode", "fill"), [("faithful", 0.577), ("dense", 0.976)])
def test_drawn_rows_are_as_long_as_the_real_ones(mode: str, fill: float) -> None:
    rows = DrawnRows(mode, 4000, 2048, 512)
    lengths = rows.labels(torch.arange(4000).numpy()).num_tokens
    assert lengths.mean() / 2048 == pytest.approx(fill, abs=0.02)
    (batch,) = drawn_batches(mode, 4, 1, 128, 512)
    assert 0 < batch.num_masked < batch.num_tokens <= 4 * 128
