"""Draws the report: losses of every exit over the steps, and retrieval quality against compute."""

import itertools
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.evaluation.report.charts import exit_color
from finetune.evaluation.report.held_out import exit_series
from finetune.evaluation.results import Evaluation
from finetune.evaluation.table import chart_label
from mose.files.atomic_file import atomic_write

_BASELINE_COLORS = ("tab:orange", "tab:red", "tab:green")


def draw_report(
    metrics: list[dict[str, Any]],
    levels: dict[str, float],
    evaluation: Evaluation,
    control: Evaluation | None,
    start: Evaluation | None,
    path: Path,
) -> None:
    """Write the PNG atomically from the lines of the pre-training run's metrics.jsonl and `levels`, losses without an encoder."""
    figure = Figure(figsize=(13, 5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_losses(left, metrics, levels)
    draw_quality(right, evaluation, control, start)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def draw_losses(axes: Axes, metrics: list[dict[str, Any]], levels: dict[str, float]) -> None:
    """MLM loss of each exit over the steps: training as lines, validation as dots."""
    training = exit_series(metrics, "loss/exit_", "/mlm")
    validation = exit_series(metrics, "validation/loss/exit_", "/mlm")
    names = sorted(training.keys() | validation.keys())
    for index, name in enumerate(names):
        color = exit_color(index, len(names))
        if name in training:
            axes.plot(*training[name], color=color, linewidth=1.3, label=f"exit {chart_label(name)}")
        if name in validation:
            label = f"exit {chart_label(name)}, held out"
            axes.plot(*validation[name], "o", color=color, markersize=4, markeredgecolor="white", label=label)
    for style, (name, level) in zip(("--", ":"), levels.items(), strict=False):
        axes.axhline(level, color="0.4", linestyle=style, linewidth=1, label=f"{name}, held out")
    axes.set(
        title="Pre-training: masked-token loss of each exit", xlabel="optimiser step", ylabel="cross-entropy (nats per token)"
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, ncols=2)


def draw_quality(axes: Axes, evaluation: Evaluation, control: Evaluation | None, start: Evaluation | None = None) -> None:
    """MRR of each exit with its interval against GFLOPs per row; baselines and chance as lines."""
    _draw_exits(axes, evaluation, "pre-trained, then fine-tuned", "tab:blue", "o-")
    if control is not None:
        _draw_exits(axes, control, "random weights, then fine-tuned", "tab:gray", "s--")
    if start is not None:
        _draw_exits(axes, start, "untrained start, then fine-tuned", "tab:olive", "^:")
    for (name, baseline), color in zip(evaluation.baselines.items(), itertools.cycle(_BASELINE_COLORS)):
        axes.axhline(baseline.mrr.value, color=color, linewidth=1.2, label=chart_label(name))
        axes.axhspan(*baseline.mrr.interval, color=color, alpha=0.08, linewidth=0)
    axes.axhline(evaluation.chance_mrr, color="0.4", linestyle=":", linewidth=1.2, label=f"chance ({evaluation.chance_mrr:.4f})")
    for name, scores in evaluation.exits.items():
        axes.annotate(
            f"exit {chart_label(name)}", (scores.gflops_per_row, scores.mrr.value), (5, 6), textcoords="offset points", fontsize=8
        )
    title = f"Retrieval: quality against compute ({evaluation.candidates:,} candidates)"
    axes.set(title=title, xlabel=f"GFLOPs per row of {evaluation.flops_tokens} tokens (forward)", ylabel="MRR, 95 % interval")
    axes.margins(x=0.1)
    # From chance (.0075) to TF-IDF (.5) is a factor of 70: on a linear axis a small model's exits would be at the bottom.
    axes.set_yscale("log")
    axes.grid(alpha=0.25)
    # Between chance and the exits the plot is empty.
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0.02, 0.12))


def _draw_exits(axes: Axes, evaluation: Evaluation, label: str, color: str, style: str) -> None:
    exits = list(evaluation.exits.values())
    values = [scores.mrr.value for scores in exits]
    below = [scores.mrr.value - scores.mrr.interval[0] for scores in exits]
    above = [scores.mrr.interval[1] - scores.mrr.value for scores in exits]
    gflops = [scores.gflops_per_row for scores in exits]
    axes.errorbar(gflops, values, yerr=[below, above], fmt=style, color=color, capsize=3, label=label)
