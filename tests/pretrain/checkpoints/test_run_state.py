"""Covers the running mean and variance by which outliers are found: against numpy, at the limit, warm-up, off, not finite."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.checkpoints.run_state import (
    GRADIENT_NOT_FINITE,
    LEAST_DEVIATION,
    LOSS_NOT_FINITE,
    LOSS_OUTLIER,
    NORM_OUTLIER,
    Health,
    Progress,
    Trend,
)
from pretrain.config.run import StabilityConfig

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60)
CONFIG = StabilityConfig(warmup_steps=4, horizon_steps=8)


def trend_of(values: list[float], horizon: int) -> Trend:
    trend = Trend()
    for value in values:
        trend = trend.after(value, horizon)
    return trend


@given(VALUES)
def test_before_the_horizon_all_values_weigh_alike(values: list[float]) -> None:
    trend = trend_of(values, horizon=len(values))
    assert trend.count == len(values)
    assert trend.mean == pytest.approx(np.mean(values), abs=1e-9, rel=1e-9)
    assert trend.variance == pytest.approx(np.var(values), abs=1e-6, rel=1e-6)


@given(VALUES, st.floats(0, 10))
def test_after_it_weights_fall_by_the_same_share_each_step(values: list[float], start: float) -> None:
    horizon = 4
    trend = trend_of([start] * horizon + values, horizon)
    weights = 0.75 ** np.arange(len(values) + 1)[::-1] * np.r_[1.0, np.full(len(values), 0.25)]
    every = np.r_[start, values]
    mean = float((weights * every).sum())
    assert trend.mean == pytest.approx(mean, abs=1e-9, rel=1e-9)
    assert trend.variance == pytest.approx(float((weights * (every - mean) ** 2).sum()), abs=1e-6, rel=1e-6)


@given(VALUES, st.floats(1, 10))
def test_the_limit_is_where_it_says_and_one_sided(values: list[float], sigmas: float) -> None:
    trend = trend_of(values, horizon=100)
    limit = trend.limit(sigmas, warmup=1)
    assert limit == trend.mean + sigmas * max(math.sqrt(trend.variance), LEAST_DEVIATION * abs(trend.mean))
    assert trend.limit(sigmas, warmup=len(values) + 1) == math.inf
    assert trend.limit(0, warmup=1) == math.inf
    assert -math.inf < limit


def test_a_value_that_is_not_finite_is_not_remembered() -> None:
    trend = trend_of([1.0, 2.0], 8)
    assert trend.after(math.nan, 8) == trend.after(math.inf, 8) == trend


def test_noise_of_a_long_run_is_no_outlier_and_a_jump_is() -> None:
    rng = np.random.default_rng(0)
    losses = 3 + 8 * np.exp(-np.arange(3000) / 300) + rng.normal(0, 0.02, 3000)
    config, health, reasons = StabilityConfig(), Health(), []
    for step, loss in enumerate(losses):
        seen = float(loss) + (0.3 if step == 2000 else 0.0)
        skipped = seen > health.loss_limit(config)
        norm = math.inf if skipped else 1.0
        reasons.append(health.reason(seen, norm, config))
        health = health.after(seen, norm, config)
    assert [step for step, reason in enumerate(reasons) if reason] == [2000]
    assert (health.skipped_steps, health.skipped_in_a_row) == (1, 0)


def test_what_was_wrong_with_a_step() -> None:
    health = Health()
    for loss in (1.0, 1.1, 0.9, 1.0):
        health = health.after(loss, loss, CONFIG)
    assert health.reason(1.0, 1.0, CONFIG) == ""
    assert health.reason(5.0, math.inf, CONFIG) == LOSS_OUTLIER
    assert health.reason(math.nan, math.inf, CONFIG) == LOSS_NOT_FINITE
    assert health.reason(1.0, math.inf, CONFIG) == GRADIENT_NOT_FINITE
    assert health.reason(1.0, 5.0, CONFIG) == NORM_OUTLIER
    assert health.after(1.0, 5.0, CONFIG).norm_outliers == 1
    assert health.after(0.0, 0.0, CONFIG).norm_outliers == 0


def test_skipped_steps_are_counted_and_change_no_trend() -> None:
    health = Health().after(1.0, 1.0, CONFIG)
    twice = health.after(9.0, math.inf, CONFIG).after(math.nan, math.inf, CONFIG)
    assert (twice.skipped_steps, twice.skipped_in_a_row) == (2, 2)
    assert (twice.loss, twice.norm) == (health.loss, health.norm)
    assert twice.after(1.0, 1.0, CONFIG).skipped_in_a_row == 0


@given(VALUES)
def test_a_checkpoint_brings_back_every_bit(values: list[float]) -> None:
    health = Health()
    for value in values:
        health = health.after(value, abs(value), CONFIG)
    progress = Progress(3, 24, 300, health)
    assert Progress.from_plain(json.loads(json.dumps(asdict(progress)))) == progress


def test_a_manifest_from_before_steps_were_watched_is_read() -> None:
    assert Progress.from_plain({"step": 3, "consumed_rows": 24, "consumed_tokens": 300}) == Progress(3, 24, 300)
