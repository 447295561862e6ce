"""The time that each rank spends on its own work in a step, compared over ranks: percentiles, and the straggler by name.

By the wall clock every rank's step takes equally long, since ranks wait for each other when they reduce gradients, inside the
backward pass. A slow rank shows in the time before that: waiting for its rows, and its forward passes.

Letters: R ranks.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist

from pretrain.monitoring.metrics import STEP_SECONDS, STRAGGLER_RATIO
from pretrain.parallel.context import ParallelContext

# A rank above this multiple of the median is reported as a straggler.
STRAGGLER_LIMIT = 1.2
_HOST_BYTES = 64


class ForwardTimer:
    """Sums the time of a module's training passes: by CUDA events on a GPU, whose kernels run asynchronously."""

    def __init__(self, module: nn.Module, device: torch.device, clock: Callable[[], float] = time.perf_counter):
        """Time `module` from now on; passes in evaluation mode do not count. `clock` returns seconds."""
        self._on_gpu, self._clock = device.type == "cuda", clock
        self._passes: list[tuple[Any, Any]] = []
        self._began: Any = None
        module.register_forward_pre_hook(self._before)
        module.register_forward_hook(self._after)

    def _before(self, module: nn.Module, _: Any) -> None:
        self._began = self._mark() if module.training else None

    def _after(self, module: nn.Module, _: Any, __: Any) -> None:
        if self._began is not None:
            self._passes.append((self._began, self._mark()))
            self._began = None

    def _mark(self) -> Any:
        if not self._on_gpu:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def take(self) -> float:
        """Seconds of the passes since the last `take`; call it after a step, when its kernels have finished."""
        passes, self._passes = self._passes, []
        if not self._on_gpu:
            return float(sum(end - began for began, end in passes))
        if passes:
            passes[-1][1].synchronize()
        return float(sum(began.elapsed_time(end) for began, end in passes)) / 1000


@dataclass(frozen=True)
class RankTimes:
    """Mean seconds per step of each rank's own work in one interval."""

    seconds_R: NDArray[np.float64]
    hosts_R: tuple[str, ...]

    def scalars(self) -> dict[str, float]:
        """`throughput/step_seconds_p50`, `_p90` and `_max` (each the time of some rank), and the largest over the median."""
        p50, p90, most = np.percentile(self.seconds_R, [50, 90, 100], method="inverted_cdf").tolist()
        values = dict(zip(STEP_SECONDS, (p50, p90, most), strict=True))
        return {**values, STRAGGLER_RATIO: most / max(p50, 1e-9)}

    @property
    def straggler(self) -> str:
        """The slowest rank in words, e.g. `straggler rank 3 (node07) 1.45x`; empty where none is far from the median."""
        ratio = self.scalars()[STRAGGLER_RATIO]
        slowest = int(self.seconds_R.argmax())
        return f"straggler rank {slowest} ({self.hosts_R[slowest]}) {ratio:.2f}x" if ratio > STRAGGLER_LIMIT else ""


class StepTimes:
    """Collects a rank's own seconds and gathers those of all ranks once per interval; every rank makes the same calls.

    Own seconds are those of waiting for rows and of all forward passes. Backward passes are left out at every ZeRO stage:
    ranks may have different numbers of them, and the last one includes the reduction. Forward passes under tensor parallelism
    and ZeRO 3 contain collectives, so there a slow rank slows its group, and the ratio shows less.
    """

    def __init__(self, module: nn.Module, context: ParallelContext, clock: Callable[[], float] = time.perf_counter):
        """Time the passes of `module`, the training model, and gather the host names of all ranks."""
        self._context = context
        self._timer = ForwardTimer(module, context.device, clock)
        self._hosts_R = _hosts(context)
        self._seconds, self._steps = 0.0, 0

    def add(self, wait_seconds: float) -> None:
        """Count one step, in which the rank waited `wait_seconds` for its rows."""
        self._seconds += wait_seconds + self._timer.take()
        self._steps += 1

    def gather(self) -> RankTimes:
        """Means of all ranks over the steps since the last call; one small all-reduce."""
        mine = torch.tensor(self._seconds / max(self._steps, 1), dtype=torch.float64)
        seconds_R = _of_all_ranks(mine, self._context)
        self._seconds, self._steps = 0.0, 0
        return RankTimes(seconds_R.numpy(), self._hosts_R)


def _hosts(context: ParallelContext) -> tuple[str, ...]:
    name = socket.gethostname().encode()[:_HOST_BYTES].ljust(_HOST_BYTES, b"\0")
    rows = _of_all_ranks(torch.tensor(list(name), dtype=torch.uint8), context).tolist()
    return tuple(bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows)


def _of_all_ranks(mine: Tensor, context: ParallelContext) -> Tensor:
    """Every rank's tensor, stacked [R, ...], on the CPU: an all-gather as a sum of rows that are zero on all ranks but one."""
    table_R = torch.zeros(context.layout.world_size, *mine.shape, dtype=mine.dtype, device=context.device)
    table_R[context.rank] = mine
    dist.all_reduce(table_R)
    return table_R.cpu()
