"""The speed of a run: real tokens per second, utilization of the device's peak, time spent waiting for data, and memory."""

import re
import resource
import sys
import time

import torch

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.size import flops_per_row, head_flops
from pretrain.model.terms.term import Denominators
from pretrain.monitoring.metrics import DATA_WAIT, FLOPS_UTILIZATION, PADDING, PEAK_MEMORY, TOKENS_PER_SECOND
from pretrain.monitoring.step_times import StepTimes
from pretrain.step import BatchCounts, StepResult

# Dense bf16 peaks in FLOP/s from the vendors' data sheets (half of the numbers given "with sparsity"), by the word of the
# device's name that identifies the model. Cards of other form factors than SXM have lower clocks.
DEVICE_PEAKS = {
    "A10": 125e12,
    "A10G": 70e12,
    "A30": 165e12,
    "A40": 149.7e12,
    "A100": 312e12,
    "A800": 312e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H800": 989e12,
    "H800 PCIe": 756e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
}
GIB = 1 << 30


def peak_of(device_name: str) -> float | None:
    """Peak FLOP/s in bf16 of a device by its driver's name, e.g. `NVIDIA H100 80GB HBM3`; None if unknown.

    The peak of a MIG slice is unknown, since its name does not give its share of the device.
    """
    words = re.split(r"[\s-]+", device_name)
    model = next((word for word in words if word in DEVICE_PEAKS), None)
    if model is None or "MIG" in words:
        return None
    forms = (f"{model} {word}" for word in words)
    return next((DEVICE_PEAKS[form] for form in forms if form in DEVICE_PEAKS), DEVICE_PEAKS[model])


def device_peak(device: torch.device) -> float | None:
    """Peak FLOP/s of the device in bf16, or None where it is not in the table (any CPU)."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def say_unknown_peak(device: torch.device) -> None:
    """Report once that the utilization of a GPU outside the table is left out."""
    if device.type == "cuda" and device_peak(device) is None:
        name = torch.cuda.get_device_name(device)
        print(f"{FLOPS_UTILIZATION}: left out: {name} is not in the table of peaks", file=sys.stderr, flush=True)


def step_flops(shape: ModularStarEncoderConfig, denominators: Denominators, counts: BatchCounts) -> int:
    """Model operations of one training step: 3 x forward (the backward pass costs twice the forward pass).

    forward = 2 x weights of the layers x real tokens + 4 x L x D x sum of squared row lengths (attention's two products)
    + heads (`mose.model.size.head_flops`). Padding is not computed, hence not counted; recomputation is not counted either.
    Equal to torch's FlopCounterMode on matrix products (tests/pretrain/monitoring/test_throughput.py).
    """
    layers = shape.num_hidden_layers
    attention = 4 * layers * shape.hidden_size
    weights = flops_per_row(shape, layers, 1) - attention
    forward = weights * counts.real_tokens + attention * counts.squared_lengths
    return 3 * (forward + head_flops(shape, denominators.masked_tokens, denominators.rows))


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
