"""How fast a run is: real tokens a second, the share of the machine's peak that they use, waiting and memory."""

import resource
import time

import torch

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.size import flops_per_row, head_flops
from pretrain.loss import Denominators
from pretrain.metrics import DATA_WAIT, FLOPS_UTILIZATION, PADDING, PEAK_MEMORY, TOKENS_PER_SECOND
from pretrain.step import BatchCounts, StepResult

# Dense bf16 peaks in FLOP/s from the vendors' data sheets, by a part of the device's name.
DEVICE_PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12}
GIB = 1 << 30


def device_peak(device: torch.device) -> float | None:
    """Peak FLOP/s of the device in bf16, or None where it is not in the table (any CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in DEVICE_PEAKS.items() if part in name), None)


def step_flops(shape: ModularStarEncoderConfig, denominators: Denominators, counts: BatchCounts) -> int:
    """Model operations of one training step: 3 x forward (the backward pass costs twice the forward pass).

    forward = 2 x weights of the layers x real tokens + 4 x L x D x sum of squared row lengths (attention's two products)
    + heads (`mose.model.size.head_flops`). Padding is not computed, hence not counted; nor is what is computed twice.
    Equal to torch's FlopCounterMode on matrix products (tests/pretrain/test_throughput.py).
    """
    layers = shape.num_hidden_layers
    attention = 4 * layers * shape.hidden_size
    weights = flops_per_row(shape, layers, 1) - attention
    forward = weights * counts.real_tokens + attention * counts.squared_lengths
    return 3 * (forward + head_flops(shape, denominators.masked_tokens, denominators.rows))


class Stopwatch:
    """Adds up an interval's tokens and waits; `read()` gives the scalars and starts the next interval."""

    def __init__(self, shape: ModularStarEncoderConfig, device: torch.device, world_size: int):
        """Start timing now."""
        self._shape, self._device, self._world_size = shape, device, world_size
        self._peak = device_peak(device)
        self._restart()

    def _restart(self) -> None:
        self._began, self._tokens, self._flops, self._wait = time.perf_counter(), 0, 0, 0.0

    def add(self, result: StepResult, wait_seconds: float) -> None:
        """Count one step."""
        self._tokens += result.counts.real_tokens
        self._flops += step_flops(self._shape, result.denominators, result.counts)
        self._wait += wait_seconds

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
        self._restart()
        return values

    def _peak_gib(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / GIB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
