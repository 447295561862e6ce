"""The learning watch over a finished or running run: its metrics beside the unigram entropy, chance and the limits of a step.

Letters: V vocabulary.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mose.array_types import INT64_ARRAY
from mose.run_directory import LOSS_TOTAL, VALIDATION, exit_scalar
from pretrain.config.objective import NONE
from pretrain.config.run import PretrainConfig
from pretrain.data.loader import BatchPlan, validation_batches
from pretrain.data.rows import Rows
from pretrain.monitoring.learning import (
    LARGEST_RATIO,
    UPDATE_RATIO,
    clipping_warning,
    fitted_task_warning,
    half_interval,
    large_steps_warning,
    masked_tokens_warning,
    task_warning,
    unigram_entropy,
)
from pretrain.monitoring.metrics import GRADIENT_NORM

# Rows of the split that the unigram entropy and the share of labels are taken from, and lines of metrics that are averaged.
LEVEL_ROWS, LAST_LINES = 512, 20
# Rows below which an accuracy is shown and not judged: its interval is then wider than +-7 points.
FEWEST_ROWS = 200
MASKED_TOKENS = "mlm"


@dataclass(frozen=True)
class Levels:
    """What a model without any context reaches: nats per masked token, and the share of the more frequent label."""

    unigram: float
    chance: float


@dataclass(frozen=True)
class Finding:
    """One watched quantity: its value, what it is compared with, and what to look at; empty where nothing is wrong."""

    name: str
    value: str
    reference: str
    warning: str


def levels_of(rows: Rows, plan: BatchPlan, vocabulary_size: int) -> Levels:
    """The levels of the first rows of a split, masked as in validation."""
    counts_V: INT64_ARRAY = np.zeros(vocabulary_size, dtype=np.int64)
    labels: list[int] = []
    for batch in validation_batches(rows, plan, LEVEL_ROWS):
        counts_V += np.bincount(batch.labels_M.numpy(), minlength=vocabulary_size)
        labels += [label for label in batch.mixed_B.tolist() if label >= 0]
    share = statistics.fmean(labels) if labels else 0.5
    return Levels(unigram_entropy(counts_V), max(share, 1 - share))


def learning_findings(config: PretrainConfig, lines: Sequence[dict[str, Any]], levels: Levels) -> list[Finding]:
    """What the watch finds in a run's metrics; `lines` are those of metrics.jsonl, in order.

    Losses and accuracies are those of the last validation, or where there was none of the last lines of training. A run that is
    still in its warm-up has no findings.
    """
    warmup = config.schedule.warmup_steps
    training = [line for line in lines if LOSS_TOTAL in line and line["step"] > warmup]
    if not training:
        return []
    validations = [line for line in lines if line["step"] > warmup and any(name.startswith(VALIDATION) for name in line)]
    source = _Source(validations[-1:], VALIDATION, config.intervals.validation_rows) if validations else None
    source = source or _Source(training[-LAST_LINES:], "", config.batch.global_rows)
    findings = _losses(config, source, levels)
    clipping = config.optimizer.gradient_clipping
    if clipping > 0:
        clipped, last = sum(line[GRADIENT_NORM] > clipping for line in training), len(training)
        warning = clipping_warning(clipped, last, clipping)
        findings.append(Finding("clipped steps", f"{clipped} of {last} logged", f"norm above {clipping:g}", warning))
    for name in sorted(name for name in training[-1] if name.startswith(UPDATE_RATIO)):
        # The largest of all: at the end of a line to zero every step is small.
        ratio = max(line.get(name, 0.0) for line in training)
        warning = large_steps_warning({name: ratio})
        findings.append(Finding(name, f"{ratio:.2%} at the largest step", f"{LARGEST_RATIO:.0%}", warning))
    return findings


@dataclass(frozen=True)
class _Source:
    """Lines of metrics that are averaged, what their names begin with, and the rows that each stands for."""

    lines: Sequence[dict[str, Any]]
    prefix: str
    rows_per_line: int

    def mean(self, kind: str, layer: int, term: str) -> float | None:
        name = self.prefix + exit_scalar(kind, layer, term)
        values = [float(line[name]) for line in self.lines if name in line]
        return statistics.fmean(values) if values else None

    @property
    def rows(self) -> int:
        return max(1, self.rows_per_line * len(self.lines))


def _losses(config: PretrainConfig, source: _Source, levels: Levels) -> list[Finding]:
    task, found = config.objective.sequence_task, []
    for layer in config.model.exit_layers:
        loss = source.mean("loss", layer, MASKED_TOKENS)
        if loss is not None:
            warning = masked_tokens_warning(loss, levels.unigram)
            found.append(Finding(f"exit {layer:02d} masked tokens", f"{loss:.3f} nats", f"unigram {levels.unigram:.3f}", warning))
    for layer in config.model.exit_layers if task != NONE else ():
        accuracy = source.mean("accuracy", layer, task)
        if accuracy is not None:
            value = f"{accuracy:.3f} +- {half_interval(source.rows):.3f}"
            enough = source.rows >= FEWEST_ROWS
            warning = task_warning(task, accuracy, source.rows, levels.chance) if enough else ""
            held_out = source.mean("loss", layer, task) if source.prefix == VALIDATION else None
            warning = warning or (fitted_task_warning(task, held_out) if held_out is not None else "")
            reference = f"chance {levels.chance:.3f}" + ("" if enough else ", too few rows to judge")
            found.append(Finding(f"exit {layer:02d} {task} accuracy", value, reference, warning))
    return found
