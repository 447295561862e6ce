"""The learning rate: the paper's numbers, the warm-up's edges, agreement with torch's own schedulers, refused configs."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mose.errors import MoseError
from mose.schedule import ScheduleConfig, learning_rate, scaled_peak

PEAK = 6.24e-4


@pytest.mark.parametrize(
    ("step", "multiple"),
    [
        (0, 1 / 4000),
        (1999, 0.5),
        (3999, 1.0),
        (4000, 1.0),
        (119_999, 1.0),
        (120_000, 0.36),
        (184_999, 0.36),
        (185_000, 0.1),
        (219_999, 0.1),
        (220_000, 0.031),
        (230_000, 0.01),
        (239_999, 0.01),
        (240_000, 0.001),
        (244_999, 0.001),
        (10_000_000, 0.001),
    ],
)
def test_paper_schedule_is_multiples_of_the_peak(step: int, multiple: float) -> None:
    assert math.isclose(learning_rate(step, ScheduleConfig()), PEAK * multiple, rel_tol=1e-12)


def torch_rates(make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_agrees_with_torch_schedulers() -> None:
    # torch multiplies the rate before by gamma; the square of gamma is the second multiple of the peak.
    down = ScheduleConfig(peak_learning_rate=1e-2, warmup_steps=0, milestones=(8, 12), factors=(0.5, 0.25))
    expected = torch_rates(lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 12], gamma=0.5), 20)
    assert np.allclose([learning_rate(step, down) for step in range(20)], expected, rtol=1e-12, atol=0)
    up = ScheduleConfig(peak_learning_rate=1e-2, warmup_steps=5, milestones=(), factors=())
    expected = torch_rates(lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 5, total_iters=4), 10)
    assert np.allclose([learning_rate(step, up) for step in range(10)], expected, rtol=1e-12, atol=0)


@given(st.integers(0, 300_000), st.integers(1, 1000))
def test_warmup_rises_and_what_follows_never_does(step: int, ahead: int) -> None:
    now, later = learning_rate(step, ScheduleConfig()), learning_rate(step + ahead, ScheduleConfig())
    assert 0 < now <= PEAK
    assert later > now if step + ahead < 4000 else step < 4000 or later <= now


def test_no_warmup_and_no_milestone_is_constant() -> None:
    config = ScheduleConfig(peak_learning_rate=1e-5, warmup_steps=0, milestones=(), factors=())
    assert {learning_rate(step, config) for step in (0, 1, 10**9)} == {1e-5}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"peak_learning_rate": -1e-3}, "peak_learning_rate"),
        ({"peak_learning_rate": math.nan}, "peak_learning_rate"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"milestones": (5000, 6000)}, "factors"),
        ({"milestones": (6000, 5000), "factors": (0.5, 0.1)}, "milestones"),
        ({"milestones": (3999,), "factors": (0.5,)}, "milestones"),
        ({"milestones": (5000,), "factors": (1.5,)}, "factors"),
    ],
)
def test_bad_config_names_its_field(values: dict[str, object], field: str) -> None:
    with pytest.raises(MoseError, match=f"^{field}: "):
        ScheduleConfig(**values)  # type: ignore[arg-type]


def test_a_line_to_zero_begins_at_the_peak_after_the_warm_up() -> None:
    config = ScheduleConfig(peak_learning_rate=1e-2, warmup_steps=4, milestones=(), factors=(), zero_at_step=12)
    rates = [learning_rate(step, config) for step in range(14)]
    assert np.allclose(rates[:5], [0.0025, 0.005, 0.0075, 0.01, 0.01], rtol=1e-12, atol=0)
    assert np.allclose(np.diff(rates[4:13]), -0.00125, rtol=1e-9, atol=0)
    assert rates[12:] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_at_step": 4000, "milestones": (), "factors": ()}, "zero_at_step: 4000, expected a step after the end of warmup"),
        ({"zero_at_step": 245_000}, "zero_at_step: 245000 beside milestones"),
        ({"zero_at_step": -1}, "zero_at_step: -1, expected 0 or more"),
    ],
)
def test_refused_lines(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MoseError) as raised:
        ScheduleConfig(**values)
    assert message in str(raised.value)


def test_peak_by_width_is_the_papers_at_its_width() -> None:
    assert scaled_peak(1024) == PEAK
    assert math.isclose(scaled_peak(64), 4 * PEAK)
