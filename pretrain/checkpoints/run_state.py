"""The state of a run that is not in the engine: its position, and how its steps went; saved with checkpoints."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from mose.errors import MoseError
from pretrain.config.run import StabilityConfig

LOSS_OUTLIER = "loss outlier"
LOSS_NOT_FINITE = "loss not finite"
GRADIENT_NOT_FINITE = "gradient not finite"
NORM_OUTLIER = "norm outlier"
# A run whose loss hardly moves has a deviation near 0, and rounding would then be an outlier: the deviation counts as at
# least this share of the mean.
LEAST_DEVIATION = 1e-3


class DivergedError(MoseError):
    """Too many steps in a row were skipped; the last checkpoint stays."""


@dataclass(frozen=True)
class Trend:
    """Mean and variance of the values seen: of all alike while they are fewer than the horizon, then exponentially weighted."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def after(self, value: float, horizon: int) -> "Trend":
        """The trend with one more value, which weighs 1 / `horizon` in the long run; one that is not finite changes nothing."""
        if not math.isfinite(value):
            return self
        weight = 1.0 / min(self.count + 1, horizon)
        apart = value - self.mean
        return Trend(self.count + 1, self.mean + weight * apart, (1.0 - weight) * (self.variance + weight * apart * apart))

    @property
    def deviation(self) -> float:
        """Standard deviation, at least `LEAST_DEVIATION` of the mean."""
        return max(math.sqrt(self.variance), LEAST_DEVIATION * abs(self.mean))

    def limit(self, sigmas: float, warmup: int) -> float:
        """The largest value that is not an outlier: `sigmas` deviations above the mean.

        Infinite before `warmup` values were seen, and where `sigmas` is 0, which switches the test off.
        """
        if sigmas == 0 or self.count < warmup:
            return math.inf
        return self.mean + sigmas * self.deviation


@dataclass(frozen=True)
class Health:
    """State after some steps; skipped steps are counted and change no trend."""

    loss: Trend = field(default_factory=Trend)
    norm: Trend = field(default_factory=Trend)
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    norm_outliers: int = 0

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "Health":
        """The state that a checkpoint's manifest holds."""
        return cls(**{**values, "loss": Trend(**values["loss"]), "norm": Trend(**values["norm"])})

    def loss_limit(self, config: StabilityConfig) -> float:
        """The largest total loss with which the next step is done."""
        return self.loss.limit(config.loss_outlier_sigmas, config.warmup_steps)

    def after(self, loss: float, norm: float, config: StabilityConfig) -> "Health":
        """The state after one more step; a step was skipped where `norm` is not finite."""
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
        """What was wrong with a step that came after this state; empty where nothing was. All but a norm outlier are skipped."""
        if math.isfinite(norm):
            return NORM_OUTLIER if norm > self.norm_limit(config) else ""
        if not math.isfinite(loss):
            return LOSS_NOT_FINITE
        return LOSS_OUTLIER if loss > self.loss_limit(config) else GRADIENT_NOT_FINITE


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int
    consumed_rows: int
    consumed_tokens: int
    health: Health = field(default_factory=Health)

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "Progress":
        """What a manifest holds; one that was written before steps were watched has no `health`."""
        health = values.get("health")
        return cls(**{**values, "health": Health() if health is None else Health.from_plain(health)})
