"""Metrics of a run, written by rank 0: metrics.jsonl, TensorBoard over steps and tokens, one console line per interval."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard.writer import SummaryWriter

from mose.files.atomic_file import named_errors
from mose.run_directory import LOSS_TOTAL, VALIDATION, RunDirectory
from pretrain.model.terms.registry import TERMS

LEARNING_RATE = "optimizer/learning_rate"
GRADIENT_NORM = "optimizer/gradient_norm"
SKIPPED_STEPS = "optimizer/skipped_steps"
NORM_OUTLIERS = "optimizer/norm_outliers"
TOKENS_PER_SECOND = "throughput/tokens_per_second_per_device"
FLOPS_UTILIZATION = "throughput/model_flops_utilization"
DATA_WAIT = "throughput/data_wait_fraction"
# Seconds per step of a rank's own work (`step_times.py`): of the median rank, at the 90th percentile, of the slowest.
STEP_SECONDS = ("throughput/step_seconds_p50", "throughput/step_seconds_p90", "throughput/step_seconds_max")
STRAGGLER_RATIO = "throughput/straggler_ratio"
PADDING = "data/padding_fraction"
PEAK_MEMORY = "memory/peak_gib"
# These depend on the speed of the machine; every other value is equal, bit for bit, in two runs of the same layout.
TIMING_KEYS = (TOKENS_PER_SECOND, FLOPS_UTILIZATION, DATA_WAIT, *STEP_SECONDS, STRAGGLER_RATIO, PEAK_MEMORY)
BY_TOKENS = "by_tokens"


class MetricWriter:
    """Writes each interval's values to every place; only rank 0 makes one."""

    def __init__(
        self, run: RunDirectory, total_steps: int, done_steps: int = 0, consumed_tokens: int = 0, stream: TextIO | None = None
    ):
        """Continue after `done_steps` steps and `consumed_tokens` tokens; later values that a killed run left are dropped.

        `stream` (default: standard error) gets the lines, and a progress bar where it is a terminal.
        """
        self._run = run
        self._total_steps = total_steps
        stream = sys.stderr if stream is None else stream
        self._console = Console(file=stream, highlight=False, soft_wrap=True, markup=False)
        run.trim(done_steps)
        # TensorBoard drops the points of a folder at `purge_step` and after, so each x-axis has a folder of its own.
        self._by_step = SummaryWriter(str(run.tensorboard), purge_step=done_steps + 1)
        self._by_tokens = SummaryWriter(str(run.tensorboard / BY_TOKENS), purge_step=consumed_tokens + 1)
        self._progress = _progress(self._console) if stream.isatty() else None
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task("step", total=total_steps, completed=done_steps)

    def write(self, step: int, consumed_tokens: int, values: Mapping[str, float], note: str = "") -> None:
        """Write one interval: `values` by scalar name, after `step` steps and `consumed_tokens` tokens.

        `note` is appended to the console line and is written nowhere else.

        Training values and validation values (names that begin with `validation/`) come in calls of their own. In
        TensorBoard each scalar stands twice: over steps, and as `by_tokens/NAME` over consumed tokens.
        """
        self._run.append_metrics({"step": step, "consumed_tokens": consumed_tokens, **values})
        with named_errors(self._run.tensorboard):
            for name, value in values.items():
                self._by_step.add_scalar(name, value, step)
                self._by_tokens.add_scalar(f"{BY_TOKENS}/{name}", value, consumed_tokens)
            self._by_step.flush()
            self._by_tokens.flush()
        line = " ".join(part for part in (console_line(step, self._total_steps, values), note) if part)
        with named_errors(Path("standard error")):
            self._console.print(line)

    def advance(self, step: int) -> None:
        """Move the progress bar; nothing where there is none."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def close(self) -> None:
        """Flush and close the event files, and end the bar."""
        with named_errors(self._run.tensorboard):
            self._by_step.close()
            self._by_tokens.close()
        if self._progress is not None:
            self._progress.stop()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def console_line(step: int, total_steps: int, values: Mapping[str, float]) -> str:
    """One line for people: `step 20/300 loss 3.912 exit_04 3.801/0.693 ... lr 6.0e-04 norm 1.23 tok/s 1,234 wait 0.1%`.

    An exit shows the losses of its terms in the order of the registry, with a slash between two; a line of validation values
    says so.
    """
    validation = any(name.startswith(VALIDATION) for name in values)
    bare = {name.removeprefix(VALIDATION): value for name, value in values.items()}
    words = [f"step {step}/{total_steps}", *(["validation"] if validation else [])]
    if LOSS_TOTAL in bare:
        words.append(f"loss {bare[LOSS_TOTAL]:.3f}")
    term_scalars = [name for term in TERMS for name in term.meanings]
    for name in dict.fromkeys(name.split("/")[1] for name in bare if name.startswith("loss/exit_")):
        losses = [bare[scalar] for term in term_scalars if (scalar := f"loss/{name}/{term}") in bare]
        words.append(f"{name} " + "/".join(f"{loss:.3f}" for loss in losses))
    forms = {
        LEARNING_RATE: "lr {:.1e}",
        GRADIENT_NORM: "norm {:.2f}",
        TOKENS_PER_SECOND: "tok/s {:,.0f}",
        FLOPS_UTILIZATION: "mfu {:.1%}",
        DATA_WAIT: "wait {:.1%}",
    }
    words += [form.format(bare[name]) for name, form in forms.items() if name in bare]
    return " ".join(words)
