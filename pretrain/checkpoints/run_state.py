"""What a run remembers of how its steps went: trends of loss and norm, steps skipped; saved with checkpoints."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from mose.errors import MoseError
from pretrain.config.run import StabilityConfig
from pretrain.outlier import Trend

LOSS_OUTLIER = "loss outlier"
LOSS_NOT_FINITE = "loss not finite"
GRADIENT_NOT_FINITE = "gradient not finite"
NORM_OUTLIER = "norm outlier"


class DivergedError(MoseError):
    """So many steps in a row were skipped that going on is a waste; the last checkpoint stands."""


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
        """The largest gradient norm that is nothing to speak of."""
        return self.norm.limit(config.norm_outlier_sigmas, config.warmup_steps)

    def reason(self, loss: float, norm: float, config: StabilityConfig) -> str:
        """What was wrong with a step that came after this state; empty where nothing was. All but a norm outlier are skipped."""
        if math.isfinite(norm):
            return NORM_OUTLIER if norm > self.norm_limit(config) else ""
        if not math.isfinite(loss):
            return LOSS_NOT_FINITE
        return LOSS_OUTLIER if loss > self.loss_limit(config) else GRADIENT_NOT_FINITE
