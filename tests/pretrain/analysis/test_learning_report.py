"""Covers the learning watch over a run's metrics: each quantity with what it is compared with, and what to look at."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from mose.schedule import ScheduleConfig
from pretrain.analysis.learning_report import Finding, Levels, learning_findings
from pretrain.config.run import BatchConfig, PretrainConfig
from pretrain.monitoring.learning import UPDATE_RATIO
from tests.pretrain.cells import tiny_config

LEVELS = Levels(unigram=5.0, chance=0.52)
EXITS = (1, 2, 4)


@pytest.fixture(scope="module")
def config(dataset: Path) -> PretrainConfig:
    batch = BatchConfig(global_rows=20, micro_batch_rows=4)
    return dataclasses.replace(tiny_config(dataset), max_steps=100, schedule=ScheduleConfig(1e-3, 5, (), ()), batch=batch)


def line(step: int, mlm: float = 3.0, accuracy: float = 0.99, norm: float = 0.4, ratio: float = 0.01) -> dict[str, Any]:
    losses = {f"loss/exit_{layer:02d}/mlm": mlm for layer in EXITS}
    accuracies = {f"accuracy/exit_{layer:02d}/icc": accuracy for layer in EXITS}
    return {
        "step": step,
        "loss/total": 1.0,
        "optimizer/gradient_norm": norm,
        f"{UPDATE_RATIO}heads": ratio,
        **losses,
        **accuracies,
    }


def warnings(findings: list[Finding]) -> list[str]:
    return [f"{finding.name}: {finding.warning}" for finding in findings if finding.warning]


def test_a_run_that_learns_has_no_warning(config: PretrainConfig) -> None:
    findings = learning_findings(config, [line(step) for step in range(1, 101)], LEVELS)
    assert warnings(findings) == []
    names = [f"exit {layer:02d} masked tokens" for layer in EXITS] + [f"exit {layer:02d} icc accuracy" for layer in EXITS]
    assert [finding.name for finding in findings] == [*names, "clipped steps", f"{UPDATE_RATIO}heads"]
    assert findings[0].value == "3.000 nats" and findings[0].reference == "unigram 5.000"
    assert findings[3].reference == "chance 0.520"
    assert findings[-2].value == "0 of 95 logged"


@pytest.mark.parametrize(
    ("change", "count", "text"),
    [
        ({"mlm": 4.95}, 3, "masked tokens: not learnt: masked tokens at 4.95 nats, token frequencies alone give 5.00"),
        ({"accuracy": 0.53}, 3, "icc accuracy: not learnt: icc accuracy 0.530 +- "),
        ({"norm": 3.0}, 1, "clipped steps: clipped at each of 95 steps"),
        ({"ratio": 0.08}, 1, f"{UPDATE_RATIO}heads: large steps: one step changes the weights of heads by 8.0%"),
    ],
)
def test_each_fault_is_found_where_it_is(config: PretrainConfig, change: dict[str, float], count: int, text: str) -> None:
    found = warnings(learning_findings(config, [line(step, **change) for step in range(1, 101)], LEVELS))
    assert len(found) == count
    assert text in found[0]


def test_a_large_step_is_found_wherever_it_was(config: PretrainConfig) -> None:
    lines = [line(step, ratio=0.05 if step == 20 else 0.0) for step in range(1, 101)]
    (found,) = warnings(learning_findings(config, lines, LEVELS))
    assert "heads by 5.0%" in found


def test_the_last_validation_counts_where_there_is_one(config: PretrainConfig) -> None:
    lines = [line(step) for step in range(1, 101)]
    lines += [{"step": 100, **{f"validation/loss/exit_{layer:02d}/mlm": 4.99 for layer in EXITS}}]
    found = warnings(learning_findings(config, lines, LEVELS))
    assert len(found) == len(EXITS) and "at 4.99 nats" in found[0]


def test_lines_of_the_warm_up_say_nothing(config: PretrainConfig) -> None:
    assert learning_findings(config, [line(step, mlm=math.inf) for step in range(1, 6)], LEVELS) == []
    few = learning_findings(config, [line(1, mlm=9.0, norm=9.0), line(6, accuracy=0.5), line(7, accuracy=0.5)], LEVELS)
    assert warnings(few) == []
    assert few[3].reference == "chance 0.520, too few rows to judge"
