"""The learning rate: a pure function of the step, so that there is no scheduler state to save or to lose."""

import bisect
import itertools
import math
from dataclasses import dataclass

from mose.config import require


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then steps down, each factor a multiple of the peak, never of the rate before it; or a line down to 0."""

    peak_learning_rate: float = 6.24e-4
    """Learning rate at the end of the warm-up (paper, section 3.1); 0: that of the paper's width carried over to the model's
    (`scaled_peak`)."""
    warmup_steps: int = 4000
    """Optimiser steps of the linear warm-up; 0 starts at the peak (paper, section 3.1)."""
    milestones: tuple[int, ...] = (120_000, 185_000, 220_000, 230_000, 240_000)
    """Steps, counted from 0, from which the factor of the same index applies (paper, section 3.1)."""
    factors: tuple[float, ...] = (0.36, 0.1, 0.031, 0.01, 0.001)
    """Multiples of the peak, one per milestone (paper, section 3.1)."""
    zero_at_step: int = 0
    """With 1 or more: from the warm-up's end the rate falls on a line to 0 at this step, and there are no milestones. For runs of
    some hundreds of steps, where steps down would take place within a few lines of the log (docs/decisions.md)."""

    def __post_init__(self) -> None:
        rate, warmup, milestones = self.peak_learning_rate, self.warmup_steps, self.milestones
        require(0 <= rate < float("inf"), f"peak_learning_rate: {rate}, expected a number above 0, or 0 for one by width")
        require(warmup >= 0, f"warmup_steps: {warmup}, expected 0 or more")
        require(
            len(self.factors) == len(milestones), f"factors: {self.factors}, expected one for each of the milestones {milestones}"
        )
        rising = all(a < b for a, b in itertools.pairwise((warmup - 1, *milestones)))
        require(rising, f"milestones: {milestones}, expected ascending steps, none before the end of warmup_steps {warmup}")
        require(all(0 <= factor <= 1 for factor in self.factors), f"factors: {self.factors}, expected numbers in 0..1")
        end = self.zero_at_step
        require(end >= 0, f"zero_at_step: {end}, expected 0 or more")
        require(not end or end > warmup, f"zero_at_step: {end}, expected a step after the end of warmup_steps {warmup}")
        require(not (end and milestones), f"zero_at_step: {end} beside milestones {milestones}, expected one of the two")


PAPER_WIDTH, PAPER_PEAK = 1024, 6.24e-4


def scaled_peak(width: int) -> float:
    """The paper's peak learning rate carried over to a model of this width: in proportion to 1 / sqrt(width).

    AdamW moves each weight by about the learning rate, whatever its size, and initial weights are in proportion to
    1 / sqrt(width) (`mose.model.model_config.initial_deviation`): so each step changes the weights by the same share as in the
    1B run. muP (Yang et al. 2022) scales the rate of matrices by 1 / width: 1e-2 at width 64, where 8e-3 was worse than 4e-3.
    """
    return PAPER_PEAK * math.sqrt(PAPER_WIDTH / width)


def learning_rate(step: int, config: ScheduleConfig) -> float:
    """The learning rate of optimiser step `step`, counted from 0.

    Section 3.1 of the paper: 4,000 warm-up steps to 6.24e-4, reduced at 120,000, 185,000, 220,000, 230,000 and 240,000
    steps by .36, .1, .031, .01 and .001. The factors are read as multiples of the peak, as in the schedule that the paper
    cites (Bi et al. 2024, whose second stage is 31.6 % of the peak and its third 10 %). Warm-up step s uses
    peak * (s + 1) / warmup_steps: no step has a rate of 0, and the last warm-up step has the peak.
    """
    if step < config.warmup_steps:
        return config.peak_learning_rate * (step + 1) / config.warmup_steps
    if config.zero_at_step:
        left = max(0, config.zero_at_step - step)
        return config.peak_learning_rate * left / (config.zero_at_step - config.warmup_steps)
    passed = bisect.bisect_right(config.milestones, step)
    return config.peak_learning_rate * (config.factors[passed - 1] if passed else 1.0)
