"""Whether a value lies far above its own recent past: a running mean and variance, as a pure function with three numbers."""

import math
from dataclasses import dataclass

# A run whose loss hardly moves has a deviation near 0, and rounding would then be an outlier: the deviation counts as at
# least this share of the mean.
LEAST_DEVIATION = 1e-3


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
        """The largest value that is no outlier: `sigmas` deviations above the mean.

        Infinite before `warmup` values were seen, and where `sigmas` is 0, which switches the test off.
        """
        if sigmas == 0 or self.count < warmup:
            return math.inf
        return self.mean + sigmas * self.deviation
