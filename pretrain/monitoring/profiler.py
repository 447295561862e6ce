"""torch's profiler over a few steps of a run: a trace for chrome://tracing or Perfetto, and a table of the slowest operations."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from mose.errors import MoseError
from mose.files.atomic_file import temporary_path
from pretrain.parallel.context import ParallelContext

# The first steps allocate memory, build communicators and fill the file cache; the profiler itself needs one step to warm up.
WARMUP_STEPS = 5
_TABLE_ROWS = 15
PROFILE_FOLDER = "profile"


@dataclass(frozen=True)
class ProfileRequest:
    """Which steps are profiled, and where."""

    steps: int = 0
    """Steps to record, after `WARMUP_STEPS` steps of this process; 0 records nothing."""
    ranks: tuple[int, ...] = (0,)
    """Ranks that record."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise MoseError(f"--profile-steps: {self.steps}, expected 0 or more")
        if any(rank < 0 for rank in self.ranks):
            raise MoseError(f"--profile-ranks: {min(self.ranks)}, expected ranks from 0")


NO_PROFILE = ProfileRequest()


@contextlib.contextmanager
def profiled_steps(request: ProfileRequest, folder: Path, context: ParallelContext) -> Iterator[Callable[[], None]]:
    """Yield a function to be called after each step. On the requested ranks, write `folder/rank-00000.json` after the last
    recorded step, or at the end of a shorter run, and print the slowest operations; on other ranks do nothing.
    """
    if not request.steps or context.rank not in request.ranks:
        yield lambda: None
        return
    on_gpu = context.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    trace = folder / f"rank-{context.rank:05d}.json"
    written: list[Path] = []

    def write(profiler: profile) -> None:
        _write_trace(profiler, trace, on_gpu)
        written.append(trace)

    plan = schedule(wait=WARMUP_STEPS - 1, warmup=1, active=request.steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
    if not written:
        _say(f"profile: nothing recorded: the run ended within the {WARMUP_STEPS} steps that are left out")


def _write_trace(profiler: profile, trace: Path, on_gpu: bool) -> None:
    trace.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(trace)
    try:
        profiler.export_chrome_trace(str(temporary))
        temporary.rename(trace)
    finally:
        temporary.unlink(missing_ok=True)
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    _say(profiler.key_averages().table(sort_by=order, row_limit=_TABLE_ROWS, max_name_column_width=50))
    _say(f"profile: {trace} (chrome://tracing or https://ui.perfetto.dev)")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
