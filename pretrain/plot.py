"""A picture of a run: losses of every exit in training and validation, and the learning rate, over steps."""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mose.atomic_file import atomic_write
from mose.errors import MoseError
from mose.run_directory import VALIDATION, RunDirectory, exit_scalar
from pretrain.metrics import LEARNING_RATE
from pretrain.objective import ICC, NSP

Lines = list[dict[str, Any]]


def plot_losses(run: RunDirectory, output: Path) -> None:
    """Write a PNG with three panels: MLM loss, ICC (or NSP) loss and learning rate; training as lines, validation as points.

    Raises:
        MoseError: the run has no training losses yet, or its metrics cannot be read.
    """
    lines = run.read_metrics()
    exits = exit_layers(lines)
    if not exits:
        raise MoseError(f"{run.metrics}: no line with a loss of an exit, expected a run that has trained")
    figure = Figure(figsize=(9, 9), layout="constrained")
    mlm, task, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    _draw_losses(mlm, lines, exits, "mlm", "MLM loss (nats a masked token)")
    name = task_of(lines)
    _draw_losses(task, lines, exits, name, f"{name.upper()} loss (nats a row)")
    mlm.legend(ncols=2, fontsize="small", title="line: training, point: validation", title_fontsize="small")
    rate.plot(*_points(lines, LEARNING_RATE), color="black")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("step")
    figure.align_ylabels()
    _save(figure, output)


def exit_layers(lines: Lines) -> list[int]:
    """The layers of the exits that have a training loss in these lines, ascending."""
    names = {name for line in lines for name in line}
    found = (re.fullmatch(r"loss/exit_(\d+)/mlm", name) for name in names)
    return sorted(int(match.group(1)) for match in found if match)


def task_of(lines: Lines) -> str:
    """The task on whole rows that has a loss in these lines; `icc`, whose panel stays empty, where none has."""
    return NSP if any(name.endswith(f"/{NSP}") for line in lines for name in line) else ICC


def _draw_losses(axes: Axes, lines: Lines, exits: list[int], objective: str, label: str) -> None:
    colours = matplotlib.colormaps["viridis"]
    for place, layer in enumerate(exits):
        colour = colours(0.9 * place / max(1, len(exits) - 1))
        name = exit_scalar("loss", layer, objective)
        axes.plot(*_points(lines, name), color=colour, linewidth=1.2, label=f"exit {layer}")
        axes.plot(
            *_points(lines, VALIDATION + name), color=colour, linestyle="none", marker="o", markersize=5, markeredgecolor="white"
        )
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)


def _points(lines: Lines, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one scalar; a value that was not finite (null) is left out."""
    chosen = [line for line in lines if line.get(name) is not None]
    return [line["step"] for line in chosen], [line[name] for line in chosen]


def _save(figure: Figure, output: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    with atomic_write(output) as file:
        file.write(picture.getvalue())
