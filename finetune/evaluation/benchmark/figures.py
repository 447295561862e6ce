"""The figures of the paper for any models: quality against compute (1b), tests between exits (4), quality by depth (5)."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.evaluation.benchmark.result import BenchmarkResult, ExitResult, ExitTests, ModelResult, TaskResult
from finetune.evaluation.benchmark.table import stars
from finetune.evaluation.metrics import Score
from finetune.evaluation.table import chart_label
from mose.files.atomic_file import atomic_write

_MULTI_EXIT_COLORS = ("tab:blue", "tab:purple", "tab:cyan", "tab:pink")
_PEER_COLORS = ("tab:orange", "tab:red", "tab:green", "tab:brown", "tab:olive", "tab:gray")
_MOST_COLUMNS = 3
_DEPTH_MEASURES = {"mrr": "MRR", "recall_at_1": "Recall@1"}


def draw_figures(result: BenchmarkResult, folder: Path) -> list[Path]:
    """Write the PNGs that the result has numbers for, and return their paths."""
    figures: dict[str, Figure] = {}
    if any(row.gflops_per_row is not None for model in result.models.values() for row in model.exits.values()):
        figures["quality_against_gflops"] = quality_against_gflops(result)
    for key, task in result.tasks.items():
        if _DEPTH_MEASURES.keys() <= task.measures.keys() and any(_has_exits(model, key) for model in result.models.values()):
            figures[f"quality_by_depth_{_file_name(key)}"] = quality_by_depth(result, key)
    for name, model in result.models.items():
        if model.tests:
            figures[f"exit_tests_{_file_name(name)}"] = exit_tests(result, name, model)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(paths[-1]) as file:
            figure.savefig(file, format="png")
    return paths


def _file_name(name: str) -> str:
    return name.replace(" ", "-").replace(":", "-")


def quality_against_gflops(result: BenchmarkResult) -> Figure:
    """Fig. 1b: the main measure of each task against GFLOPs per row; models without exits as horizontal lines."""
    figure, panels = _panels(len(result.tasks))
    for axes, (key, task) in zip(panels, result.tasks.items(), strict=True):
        for name, model, color in _multi_exit(result, key):
            rows = [row for row in model.exits.values() if row.gflops_per_row is not None]
            gflops = [float(row.gflops_per_row or 0.0) for row in rows]
            _line_with_intervals(axes, gflops, _scores(rows, key, task, task.main_measure), chart_label(name), color)
            for x, (exit_name, row) in zip(gflops, model.exits.items(), strict=True):
                found = row.score(key, task.overall, task.main_measure)
                if found is not None:
                    axes.annotate(
                        chart_label(exit_name),
                        (x, 100 * found.value),
                        (4, 5),
                        textcoords="offset points",
                        fontsize=8,
                        color=color,
                    )
        _peer_lines(axes, result, key, task)
        label = f"{task.measures[task.main_measure]} (%), 95 % interval"
        axes.set(title=chart_label(task.title), xlabel=f"GFLOPs per row of {result.flops_tokens} tokens", ylabel=label)
        axes.margins(0.12)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    return figure


def quality_by_depth(result: BenchmarkResult, key: str) -> Figure:
    """Fig. 5: MRR and recall@1 of one task by the layer of the exit."""
    task = result.tasks[key]
    figure, panels = _panels(len(_DEPTH_MEASURES))
    for axes, (measure, title) in zip(panels, _DEPTH_MEASURES.items(), strict=True):
        layers: set[int] = set()
        for name, model, color in _multi_exit(result, key):
            rows = [row for row in model.exits.values() if row.layer is not None]
            depth = [int(row.layer or 0) for row in rows]
            layers.update(depth)
            _line_with_intervals(axes, depth, _scores(rows, key, task, measure), chart_label(name), color)
        part = f", {task.overall}" if task.overall else ""
        axes.set(
            title=chart_label(f"{task.title}{part}: {title} by depth"),
            xlabel="layer of the exit",
            ylabel=f"{title} (%), 95 % interval",
        )
        axes.set_xticks(sorted(layers))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure


def exit_tests(result: BenchmarkResult, name: str, model: ModelResult) -> Figure:
    """Fig. 4: for each part, a heat map of t between exits' similarities of correctly retrieved pairs, or else of differences."""
    tests = [(key, part, test) for key, parts in model.tests.items() for part, test in parts.items()]
    figure, panels = _panels(len(tests))
    for axes, (key, part, test) in zip(panels, tests, strict=True):
        _heat_map(axes, list(model.exits), test)
        task = result.tasks[key]
        what = "t of similarities, correctly retrieved" if test.similarities else f"{task.measures[test.measure]}, percent points"
        axes.set_title(chart_label(f"{task.title}{', ' if part else ''}{part}\n{what}"), fontsize=9)
        axes.set(xlabel="exit", ylabel="exit")
    figure.suptitle(f"{chart_label(name)}: row minus column; * p < 0.05, ** p < 0.001 (permutation test)", fontsize=10)
    return figure


def _heat_map(axes: Axes, names: Sequence[str], test: ExitTests) -> None:
    values, marks = np.zeros((len(names), len(names))), [["" for _ in names] for _ in names]
    for (a, first), (b, second) in itertools.combinations(enumerate(names), 2):
        pair = f"{first}-{second}"
        if test.similarities:
            value, p = test.similarities[pair].t, test.similarities[pair].p
        else:
            value, p = 100 * test.differences[pair].difference.value, test.differences[pair].p
        values[a, b], values[b, a] = value, -value
        marks[a][b] = marks[b][a] = stars(p).strip()
    most = max(float(np.abs(values).max()), 1e-9)
    image = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most)
    for a, b in itertools.product(range(len(names)), repeat=2):
        if a != b:
            color = "white" if abs(values[a, b]) > 0.6 * most else "black"
            axes.text(b, a, f"{values[a, b]:+.1f}\n{marks[a][b]}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, _MOST_COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.6 * columns + 0.4, 4.0 * rows), dpi=120, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _has_exits(model: ModelResult, key: str) -> bool:
    return any(row.layer is not None and key in row.scores for row in model.exits.values())


def _multi_exit(result: BenchmarkResult, key: str) -> Iterator[tuple[str, ModelResult, str]]:
    """The models whose exits have a depth and scores on the task, each with its color: the same in all figures."""
    colors = itertools.cycle(_MULTI_EXIT_COLORS)
    for name, model in result.models.items():
        if any(row.layer is not None for row in model.exits.values()):
            color = next(colors)
            if _has_exits(model, key):
                yield name, model, color


def _scores(rows: Sequence[ExitResult], key: str, task: TaskResult, measure: str) -> list[Score]:
    return [found for row in rows if (found := row.score(key, task.overall, measure)) is not None]


def _line_with_intervals(axes: Axes, places: Sequence[float], scores: Sequence[Score], label: str, color: str) -> None:
    values = [100 * score.value for score in scores]
    # A percentile interval may lie to one side of the value.
    below = [max(0.0, 100 * (score.value - score.interval[0])) for score in scores]
    above = [max(0.0, 100 * (score.interval[1] - score.value)) for score in scores]
    axes.errorbar(places, values, yerr=[below, above], fmt="o-", color=color, capsize=3, label=label)


def _peer_lines(axes: Axes, result: BenchmarkResult, key: str, task: TaskResult) -> None:
    colors = itertools.cycle(_PEER_COLORS)
    for name, model in result.models.items():
        for row in model.exits.values():
            if row.layer is None:
                color = next(colors)
                found = row.score(key, task.overall, task.main_measure)
                if found is not None:
                    axes.axhline(100 * found.value, color=color, linestyle="--", linewidth=1.2, label=chart_label(name))
