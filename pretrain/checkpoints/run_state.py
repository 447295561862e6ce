"""The state of a run outside the engine: its position, and statistics of its steps; saved with checkpoints."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from mose.errors import MoseError
from mose.files.records import from_plain
from pretrain.config.run import StabilityConfig

LOSS_OUTLIER = "loss outlier"
LOSS_NOT_FINITE = "loss not finite"
GRADIENT_NOT_FINITE = "gradient not finite"
NORM_OUTLIER = "norm outlier"
# Lower bound of the deviation, as a share of the mean: where the loss hardly changes, the deviation is near 0 and rounding would
# count as an outlier.
LEAST_DEVIATION = 1e-3


class DivergedError(MoseError):
    """Too many steps in a row were skipped; the last checkpoint is kept."""


@dataclass(frozen=True)
class Trend:
    """Running mean and variance: of all values equally while they are fewer than the horizon, then exponentially weighted.

    Equal weights at first, since exponential ones would let the first value dominate most of the first horizon.
    """

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def after(self, value: float, horizon: int) -> "Trend":
        """The trend after one more value, of weight 1 / `horizon` in the long run; a value that is not finite is ignored."""
        if not math.isfinite(value):
            return self
        weight = 1.0 / min(self.count + 1, horizon)
        offset = value - self.mean
        return Trend(self.count + 1, self.mean + weight * offset, (1.0 - weight) * (self.variance + weight * offset * offset))

    @property
    def deviation(self) -> float:
        """Standard deviation, at least `LEAST_DEVIATION` of the mean."""
        return max(math.sqrt(self.variance), LEAST_DEVIATION * abs(self.mean))

    def limit(self, sigmas: float, warmup: int) -> float:
        """The largest value that is not an outlier: `sigmas` deviations above the mean.

        Infinite before `warmup` values, and where `sigmas` is 0, which switches the test off.
        """
        if sigmas == 0 or self.count < warmup:
            return math.inf
        return self.mean + sigmas * self.deviation


@dataclass(frozen=True)
class Health:
    """Statistics of the steps so far; skipped steps are counted, and their values enter no trend."""

    loss: Trend = field(default_factory=Trend)
    norm: Trend = field(default_factory=Trend)
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    norm_outliers: int = 0

    def loss_limit(self, config: StabilityConfig) -> float:
        """The largest total loss with which the next step is applied; above it, the step is skipped."""
        return self.loss.limit(config.loss_outlier_sigmas, config.warmup_steps)

    def after(self, loss: float, norm: float, config: StabilityConfig) -> "Health":
        """The statistics after one more step; a `norm` that is not finite marks a skipped step."""
        if not math.isfinite(norm):
            return replace(self, skipped_steps=self.skipped_steps + 1, skipped_in_a_row=self.skipped_in_a_row + 1)
        return replace(
            self,
            loss=self.loss.after(loss, config.horizon_steps),
            norm=self.norm.after(norm, config.horizon_steps),
            skipped_in_a_row=0,
            norm_outliers=self.norm_outliers + (norm > self.norm_limit(config)),
        )

    def norm_limit(self, config: StabilityConfig) -> float:
        """The largest gradient norm that does not count as an outlier."""
        return self.norm.limit(config.norm_outlier_sigmas, config.warmup_steps)

    def reason(self, loss: float, norm: float, config: StabilityConfig) -> str:
        """The fault of the step after this state, or an empty string; all faults but a norm outlier mean that it was skipped."""
        if math.isfinite(norm):
            return NORM_OUTLIER if norm > self.norm_limit(config) else ""
        if not math.isfinite(loss):
            return LOSS_NOT_FINITE
        return LOSS_OUTLIER if loss > self.loss_limit(config) else GRADIENT_NOT_FINITE


@dataclass(frozen=True)
class Progress:
    """The position of a run: finished steps, consumed rows and tokens, and the statistics of its steps."""

    step: int
    consumed_rows: int
    consumed_tokens: int
    health: Health = field(default_factory=Health)

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "Progress":
        """The progress in a manifest; manifests of early versions have no `health`. Raises ValueError on a wrong field."""
        # An early version wrote null where it had no statistics.
        present = {name: value for name, value in values.items() if name != "health" or value is not None}
        return from_plain(cls, present)
