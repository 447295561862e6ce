"""The learning rate: a pure function of the step, so that there is no scheduler state to save or to lose."""

import bisect
import itertools
from dataclasses import dataclass

from mose.config import require


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then steps down: each factor is a multiple of the peak, never of the rate before it."""

    peak_learning_rate: float = 6.24e-4
    """Learning rate at the end of the warm-up (paper, section 3.1)."""
    warmup_steps: int = 4000
    """Optimiser steps of the linear warm-up; 0 starts at the peak (paper, section 3.1)."""
    milestones: tuple[int, ...] = (120_000, 185_000, 220_000, 230_000, 240_000)
    """Steps, counted from 0, from which the factor of the same index applies (paper, section 3.1)."""
    factors: tuple[float, ...] = (0.36, 0.1, 0.031, 0.01, 0.001)
    """Multiples of the peak, one per milestone (paper, section 3.1)."""

    def __post_init__(self) -> None:
        rate, warmup, milestones = self.peak_learning_rate, self.warmup_steps, self.milestones
        require(0 < rate < float("inf"), f"peak_learning_rate: {rate}, expected a number above 0")
        require(warmup >= 0, f"warmup_steps: {warmup}, expected 0 or more")
        require(
            len(self.factors) == len(milestones), f"factors: {self.factors}, expected one for each of the milestones {milestones}"
        )
        rising = all(a < b for a, b in itertools.pairwise((warmup - 1, *milestones)))
        require(rising, f"milestones: {milestones}, expected ascending steps, none before the end of warmup_steps {warmup}")
        require(all(0 <= factor <= 1 for factor in self.factors), f"factors: {self.factors}, expected numbers in 0..1")


def learning_rate(step: int, config: ScheduleConfig) -> float:
    """The learning rate of optimiser step `step`, counted from 0.

    Section 3.1 of the paper: 4,000 warm-up steps to 6.24e-4, reduced at 120,000, 185,000, 220,000, 230,000 and 240,000
    steps by .36, .1, .031, .01 and .001. The factors are read as multiples of the peak, as in the schedule that the paper
    cites (Bi et al. 2024, whose second stage is 31.6 % of the peak and its third 10 %). Warm-up step s uses
    peak * (s + 1) / warmup_steps: no step has a rate of 0, and the last warm-up step has the peak.
    """
    if step < config.warmup_steps:
        return config.peak_learning_rate * (step + 1) / config.warmup_steps
    passed = bisect.bisect_right(config.milestones, step)
    return config.peak_learning_rate * (config.factors[passed - 1] if passed else 1.0)
