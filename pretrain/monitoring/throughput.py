"""The speed of a run: real tokens per second, utilization of the device's peak, time spent waiting for data, and memory."""

import resource
import sys
import time

import torch

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.cost.devices import peak_of
from mose.model.size import training_flops
from pretrain.model.terms.term import Denominators
from pretrain.monitoring.metrics import DATA_WAIT, FLOPS_UTILIZATION, PADDING, PEAK_MEMORY, TOKENS_PER_SECOND
from pretrain.monitoring.step_times import StepTimes
from pretrain.step import BatchCounts, StepResult

GIB = 1 << 30


def device_peak(device: torch.device) -> float | None:
    """Peak FLOP/s of the device in bf16, or None where it is not in the table (any CPU)."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def say_unknown_peak(device: torch.device) -> None:
    """Report once that the utilization of a GPU outside the table is left out."""
    if device.type == "cuda" and device_peak(device) is None:
        name = torch.cuda.get_device_name(device)
        print(f"{FLOPS_UTILIZATION}: left out: {name} is not in the table of peaks", file=sys.stderr, flush=True)


def step_flops(shape: ModularStarEncoderConfig, denominators: Denominators, counts: BatchCounts) -> int:
    """Model operations of one training step (`mose.model.size.training_flops`); padding is not computed, hence not counted."""
    rows = denominators.masked_tokens, denominators.rows
    return training_flops(shape, counts.real_tokens, counts.squared_lengths, *rows)


class Stopwatch:
    """Sums the tokens and waits of an interval; `read()` returns the scalars and starts the next interval."""

    def __init__(
        self, shape: ModularStarEncoderConfig, device: torch.device, world_size: int, step_times: StepTimes | None = None
    ):
        """Start timing now; with `step_times`, ranks are also compared, and `read` must be called on all of them."""
        self._shape, self._device, self._world_size = shape, device, world_size
        self._step_times = step_times
        self._peak = device_peak(device)
        self.straggler = ""
        """The straggler of the interval last read; empty if there was none."""
        self._restart()

    def _restart(self) -> None:
        self._began, self._tokens, self._flops, self._wait = time.perf_counter(), 0, 0, 0.0

    def add(self, result: StepResult, wait_seconds: float) -> None:
        """Count one step."""
        self._tokens += result.counts.real_tokens
        self._flops += step_flops(self._shape, result.denominators, result.counts)
        self._wait += wait_seconds
        if self._step_times is not None:
            self._step_times.add(wait_seconds)

    def read(self, result: StepResult) -> dict[str, float]:
        """Scalars of the interval that ends with `result`."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        values = {
            TOKENS_PER_SECOND: self._tokens / seconds / self._world_size,
            DATA_WAIT: self._wait / seconds,
            PADDING: 1.0 - result.counts.real_tokens / max(result.counts.slots, 1),
            PEAK_MEMORY: self._peak_gib(),
        }
        if self._peak is not None:
            values[FLOPS_UTILIZATION] = self._flops / seconds / self._world_size / self._peak
        if self._step_times is not None:
            times = self._step_times.gather()
            values |= times.scalars()
            self.straggler = times.straggler
        self._restart()
        return values

    def _peak_gib(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / GIB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
