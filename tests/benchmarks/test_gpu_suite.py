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
FAULT = "CUDA error: an illegal memory access was encountered"
PARTS = (
    "attention",
    "model",
    "optimizer",
    "micro_batches",
    "checkpoints",
    "padding",
    "exits",
    "attention_backends",
    "activation_checkpointing",
    "head_widths",
)


def test_the_rehearsal_goes_through_and_writes_what_it_measured(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--one-process", "--output", str(output), "--parts", *PARTS]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    figures = json.loads(output.read_text())
    assert figures["failed"] == []
    assert len(figures["checks"]) == 13
    assert set(PARTS[3:]) <= figures.keys()
    assert figures["padding"]["faithful"]["unpadded"]["loss"] == pytest.approx(
        figures["padding"]["faithful"]["padded"]["loss"], rel=0.02
    )
    saved = figures["checkpoints"]
    assert saved["save"]["bytes"] > 3 * saved["export"]["bytes"] > 0
    assert saved["resume"]["loss_difference"] < 1e-5
    assert figures["exits"]["every"]["loss"] > figures["exits"]["one"]["loss"]


def test_what_no_time_is_left_for_is_named(tmp_path: Path) -> None:
    from benchmarks.gpu_suite import measure

    figures = measure(torch.device("cpu"), -1.0, ("attention", "exits"))
    assert {"attention: no time left", "exits: no time left"} <= set(figures["left_out"])


def test_a_fault_and_a_hang_lose_one_part_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found before stays: the file is written after each part, and of a part that hangs after each figure."""
    from benchmarks import gpu_suite

    def pretended(command: list[str], timeout: float, **_: object) -> subprocess.CompletedProcess[str]:
        name, result = command[3], Path(command[6])
        if name == "attention":
            return subprocess.CompletedProcess(command, 3, "", f"Traceback\n{FAULT}\n\n")
        result.write_text(json.dumps({name: 5}), "utf-8")
        if name == "micro_batches":
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(gpu_suite.subprocess, "run", pretended)
    output = tmp_path / "figures.json"
    gpu_suite.measure(torch.device("cpu"), 600.0, ("attention", "micro_batches", "exits", "head_widths"), output)
    figures = json.loads(output.read_text())
    assert figures["failed"] == [
        f"attention: ended with code 3: {FAULT}",
        "micro_batches: ended after 180 s",
    ]
    assert (figures["micro_batches"], figures["exits"], figures["head_widths"]) == (5, 5, 5)


def test_torch_and_numpy_are_enough(tmp_path: Path) -> None:
    """On a machine without transformers, YAML and the rest, stand-ins are used and named; the padded model is left out."""
    code = BARE.format(parts=("model", "micro_batches", "checkpoints", "padding"), folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    names = ("model", "micro_batches", "checkpoints", "padding")
    model, micro_batches, checkpoints, padding = (json.loads((tmp_path / name).read_text()) for name in names)
    assert "checkpoints" not in checkpoints
    assert (
        "checkpoints: needs deepspeed, safetensors, transformers, with which a run saves and exports" in checkpoints["left_out"]
    )
    assert all(check["passed"] for check in model["checks"])
    assert micro_batches["micro_batches"].keys() == {"1", "2"}
    assert "padding" not in padding
    assert "transformers: not installed, a stand-in is used" in padding["left_out"]


# Hides every installed package but torch, numpy and what those need; the finder of the stand-ins stands before this one.
BARE = """
import importlib.abc, importlib.metadata, importlib.util, re, sys
from pathlib import Path

HERE = Path.cwd()
DISTRIBUTIONS = importlib.metadata.packages_distributions()


def plain(name):
    return re.sub("[^a-z0-9]+", "-", name.lower())


def closure(names):
    found, left = set(), [*names]
    while left:
        name = plain(left.pop())
        if name in found:
            continue
        found.add(name)
        needs = importlib.metadata.requires(name) or []
        left += [re.match("[A-Za-z0-9._-]+", need)[0] for need in needs if ";" not in need]
    return found


PRESENT = closure(["torch", "numpy"])


def is_absent(name):
    owners = DISTRIBUTIONS.get(name.partition(".")[0], [])
    own = (HERE / name.partition(".")[0]).is_dir()
    return bool(owners) and not own and not any(plain(one) in PRESENT for one in owners)


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if is_absent(name):
            raise ModuleNotFoundError(name, name=name)


assert is_absent("google.protobuf") and is_absent("deepspeed") and not is_absent("sympy")
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if is_absent(name) else real(name, package)
sys.meta_path.insert(0, Absent())
from benchmarks.gpu_parts.parts import run_part

for part in {parts}:
    run_part(part, "cpu", 2, Path("{folder}") / part)
"""


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
