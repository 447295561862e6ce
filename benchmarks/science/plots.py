"""Draws one part of the study: MRR of both sides with every seed, and the paired differences with their intervals."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.science.results import Comparison
from benchmarks.science.study import file_stem
from mose.files.atomic_file import atomic_write

# Distance between series at one exit, so that intervals do not cover each other.
_STEP = 0.12


def draw_part(comparisons: Sequence[Comparison], names: Mapping[str, str], path: Path) -> None:
    """Write an SVG atomically; equal results give equal bytes."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    held_out = [comparison for comparison in comparisons if not comparison.file] or list(comparisons[:1])
    exits = [row.exit for row in max(comparisons, key=lambda comparison: len(comparison.rows)).rows]
    _draw_sides(left, held_out, exits, names)
    _draw_differences(right, comparisons, exits, names)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": path.name}), atomic_write(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


def _draw_sides(axes: Axes, comparisons: Sequence[Comparison], exits: Sequence[str], names: Mapping[str, str]) -> None:
    series: dict[str, dict[str, tuple[float, ...]]] = {}
    for comparison in comparisons:
        for row in comparison.rows:
            series.setdefault(comparison.first, {})[row.exit] = row.first["mrr"]
            series.setdefault(comparison.second, {})[row.exit] = row.second["mrr"]
    for number, (arm, values) in enumerate(series.items()):
        places = [exits.index(name) + _offset(number, len(series)) for name in values]
        means = [statistics.fmean(value) for value in values.values()]
        (line,) = axes.plot(places, means, "o-", label=names[arm], linewidth=1.5)
        for place, value in zip(places, values.values(), strict=True):
            axes.plot([place] * len(value), value, "_", color=line.get_color(), markersize=9, alpha=0.7)
    axes.set(title="MRR on held-out repositories: mean (dot) and each seed (dash)", xlabel="exit", ylabel="MRR")
    axes.set_ylim(bottom=0)
    _finish(axes, exits)


def _draw_differences(axes: Axes, comparisons: Sequence[Comparison], exits: Sequence[str], names: Mapping[str, str]) -> None:
    for number, comparison in enumerate(comparisons):
        scores = [row.difference["mrr"] for row in comparison.rows]
        places = [exits.index(row.exit) + _offset(number, len(comparisons)) for row in comparison.rows]
        below = [score.value - score.interval[0] for score in scores]
        above = [score.interval[1] - score.value for score in scores]
        where = file_stem(comparison.file) if comparison.file else "held-out repositories"
        label = f"{names[comparison.first]} - {names[comparison.second]}: {where}"
        axes.errorbar(places, [score.value for score in scores], yerr=[below, above], fmt="o", capsize=3, label=label)
    axes.axhline(0, color="0.4", linewidth=1)
    axes.set(title="Paired difference of MRR, 95 % interval", xlabel="exit", ylabel="difference of MRR")
    _finish(axes, exits)


def _offset(number: int, count: int) -> float:
    return (number - (count - 1) / 2) * min(_STEP, 0.8 / max(1, count))


def _finish(axes: Axes, exits: Sequence[str]) -> None:
    axes.set_xticks(range(len(exits)), exits)
    axes.margins(x=0.15)
    axes.grid(alpha=0.25)
    # Below the axes, where it covers no interval.
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14))
