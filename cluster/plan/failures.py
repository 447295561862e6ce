"""Failures of a long run: how many to expect, how often to save, and the share of the time that is useful."""

import math
from dataclasses import dataclass

# Llama 3 (arXiv 2407.21783, section 3.3.4): 466 interruptions of a job of 16,384 GPUs in 54 days.
FAILURES_PER_GPU_DAY = 466 / (16_384 * 54)
DAY = 86_400


@dataclass(frozen=True)
class FailureModel:
    """How often a run fails, and what a failure and a save cost."""

    gpus: int
    failures_per_gpu_day: float = FAILURES_PER_GPU_DAY
    save_seconds: float = 20.0
    """Time for which training stands still while a checkpoint is written. Assumed; measured on the site it is in the log."""
    restart_seconds: float = 600.0
    """From a failure to the next step: noticed, queued, started, checkpoint read. Assumed."""

    @property
    def mean_seconds_between_failures(self) -> float:
        """Of the whole job: any device ends it."""
        return DAY / (self.gpus * self.failures_per_gpu_day) if self.failures_per_gpu_day else math.inf

    @property
    def young_seconds(self) -> float:
        """Young's interval between checkpoints: sqrt(2 x save x time between failures)."""
        return math.sqrt(2 * self.save_seconds * self.mean_seconds_between_failures)

    @property
    def daly_seconds(self) -> float:
        """Daly's refinement of it (Future Generation Computer Systems 22, 2006, equation 37)."""
        save, between = self.save_seconds, self.mean_seconds_between_failures
        if save >= 2 * between:
            return between
        share = save / (2 * between)
        return self.young_seconds * (1 + math.sqrt(share) / 3 + share / 9) - save

    def goodput(self, interval_seconds: float) -> float:
        """Share of the time that is useful with a checkpoint every `interval_seconds` of training.

        A failure costs half an interval of steps on average, and a restart.
        """
        saving = interval_seconds / (interval_seconds + self.save_seconds)
        lost = (interval_seconds / 2 + self.restart_seconds) / self.mean_seconds_between_failures
        return saving * max(0.0, 1 - lost)

    def expected(self, days: float) -> float:
        """Failures of a run of this length."""
        return days * DAY / self.mean_seconds_between_failures
