"""Covers `train --profile-steps`: a trace of just the steps asked for after the warm-up, a table, and nothing when off."""

import json
from pathlib import Path

import pytest

from mose.config import save_config
from mose.errors import MoseError
from pretrain.monitoring.profiler import WARMUP_STEPS, ProfileRequest
from tests.pretrain.cells import tiny_config
from tests.pretrain.forked import succeeds


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> Path:
    save_config(tiny_config(dataset, micro_batch_rows=2), tmp_path / "config.yaml")
    return tmp_path / "config.yaml"


def trained(config: Path, steps: int, *more: object) -> str:
    words = ("train", "--config", config, "--output", config.parent / "run", "--max_steps", steps)
    return succeeds(*words, "--intervals.log_every_steps", 4, *more)


def test_the_steps_asked_for_are_recorded(config: Path) -> None:
    printed = trained(config, WARMUP_STEPS + 4, "--profile-steps", 2)
    (trace,) = (config.parent / "run" / "profile").iterdir()
    assert trace.name == "rank-00000.json"
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    recorded = sorted({name for name in names if name.startswith("ProfilerStep#")})
    assert recorded == [f"ProfilerStep#{WARMUP_STEPS}", f"ProfilerStep#{WARMUP_STEPS + 1}"]
    assert "aten::addmm" in names
    assert "Self CPU time total" in printed
    assert str(trace) in printed
    assert "attention sdpa, 1 x CPU, 1 thread per rank, torch" in printed


def test_a_run_that_is_too_short_says_so(config: Path) -> None:
    printed = trained(config, 2, "--profile-steps", 2)
    assert "profile: nothing recorded: the run ended within the 5 steps that are left out" in printed
    assert not (config.parent / "run" / "profile").exists()


def test_off_or_on_another_rank_there_is_no_trace(config: Path, finished_run: Path) -> None:
    assert not (finished_run / "profile").exists()
    trained(config, WARMUP_STEPS + 2, "--profile-steps", 1, "--profile-ranks", 1)
    assert not (config.parent / "run" / "profile").exists()


def test_bad_requests_are_named() -> None:
    with pytest.raises(MoseError, match="--profile-steps: -1, expected 0 or more"):
        ProfileRequest(-1)
    with pytest.raises(MoseError, match="--profile-ranks: -2, expected ranks from 0"):
        ProfileRequest(1, (0, -2))
