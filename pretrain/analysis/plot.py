"""Plots of a run: losses, learning rate, gradient norm and speed over steps; and gradients of a checkpoint's exits."""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mose.errors import MoseError
from mose.files.atomic_file import atomic_write
from mose.files.streams import presentable
from mose.run_directory import VALIDATION, RunDirectory, exit_scalar
from pretrain.analysis.exit_gradients import ExitGradients
from pretrain.model.terms.registry import TERMS
from pretrain.monitoring.metrics import FLOPS_UTILIZATION, GRADIENT_NORM, LEARNING_RATE, TOKENS_PER_SECOND

Lines = list[dict[str, Any]]


def plot_losses(run: RunDirectory, output: Path) -> None:
    """Write a PNG: the loss of each term (training as lines, validation as points), gradient norm, rate, tokens per second.

    Raises:
        MoseError: the run has no training losses yet, or its metrics cannot be read.
    """
    lines = run.read_metrics()
    exits = exit_layers(lines)
    if not exits:
        raise MoseError(f"{run.metrics}: no line with a loss of an exit, expected a run that has trained")
    units = loss_units(lines)
    heights = (*(3 if place == 0 else 2 for place in range(len(units))), 1, 1, 1)
    figure = Figure(figsize=(9, 1.375 * sum(heights)), layout="constrained")
    *losses, norm, rate, speed = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for axes, (name, unit) in zip(losses, units.items(), strict=True):
        _draw_losses(axes, lines, exits, name, f"{name.upper()} loss (nats per {unit})")
    losses[0].legend(ncols=2, fontsize="small", title="line: training, point: validation", title_fontsize="small")
    _draw_one(norm, lines, GRADIENT_NORM, "gradient norm")
    _draw_one(rate, lines, LEARNING_RATE, "learning rate")
    _draw_one(speed, lines, TOKENS_PER_SECOND, "tokens/s\nper device")
    if any(line.get(FLOPS_UTILIZATION) is not None for line in lines):
        share = speed.twinx()
        _draw_one(share, lines, FLOPS_UTILIZATION, "utilization", "tab:orange")
    speed.set_xlabel("step")
    figure.align_ylabels()
    _save(figure, output)


def _draw_one(axes: Axes, lines: Lines, name: str, label: str, colour: str = "black") -> None:
    axes.plot(*_points(lines, name), color=colour, linewidth=1.2)
    axes.set_ylabel(label, color=colour)
    axes.set_ylim(bottom=0)


def exit_layers(lines: Lines) -> list[int]:
    """The layers of the exits that have a training loss in these lines, ascending."""
    names = {name for line in lines for name in line}
    found = (re.fullmatch(r"loss/exit_(\d+)/.+", name) for name in names)
    return sorted({int(match.group(1)) for match in found if match})


def loss_units(lines: Lines) -> dict[str, str]:
    """Name of each term that has a loss in these lines, and what that loss is a mean over, in the order of the registry."""
    found = {name.rpartition("/")[2] for line in lines for name in line if name.startswith("loss/exit_")}
    return {name: term.unit for term in TERMS for name in term.meanings if name in found}


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


def plot_exit_gradients(found: ExitGradients, output: Path, title: str) -> None:
    """Write a PNG: each exit's gradient norm on each block of the trunk, cosines between exits, and by block with the deepest."""
    figure = Figure(figsize=(max(9.0, 0.3 * len(found.blocks) + 3), 8), layout="constrained")
    figure.suptitle(presentable(title), parse_math=False)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.6))
    exits = [f"exit {layer}" for layer in found.exit_layers]
    _draw_norms(figure.add_subplot(grid[0, :]), found, exits)
    _draw_cosines(figure.add_subplot(grid[1, 0]), found, exits)
    _draw_agreement(figure.add_subplot(grid[1, 1]), found, exits)
    _save(figure, output)


def _draw_norms(axes: Axes, found: ExitGradients, exits: list[str]) -> None:
    reached_EP = np.ma.masked_equal(found.norms_EP, 0.0)
    picture = axes.imshow(reached_EP, aspect="auto", cmap="viridis", norm="log")
    axes.set_title("norm of each exit's gradient, weighted as in training (white: the exit lies below)", fontsize="medium")
    axes.set_yticks(range(len(exits)), exits)
    axes.set_xticks(range(len(found.blocks)), found.blocks, rotation=90 if len(found.blocks) > 20 else 0)
    axes.set_xlabel("block of the trunk")
    axes.figure.colorbar(picture, ax=axes)


def _draw_cosines(axes: Axes, found: ExitGradients, exits: list[str]) -> None:
    axes.imshow(found.cosines_EE, cmap="RdBu", vmin=-1, vmax=1)
    axes.set_title("cosines on the blocks that both reach", fontsize="medium")
    axes.set_xticks(range(len(exits)), exits, rotation=45, ha="right")
    axes.set_yticks(range(len(exits)), exits)
    for (row, column), value in np.ndenumerate(found.cosines_EE):
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 else "black")


def _draw_agreement(axes: Axes, found: ExitGradients, exits: list[str]) -> None:
    colours = matplotlib.colormaps["viridis"]
    places = range(len(found.blocks))
    for index, name in enumerate(exits[:-1]):
        colour = colours(0.9 * index / max(1, len(exits) - 1))
        axes.plot(places, found.cosines_PEE[:, index, -1], color=colour, marker="o", markersize=3, label=name)
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set_title(f"cosine with {exits[-1]}, by block", fontsize="medium")
    axes.set_xticks(places, found.blocks, rotation=90)
    axes.set_xlabel("block of the trunk")
    axes.grid(alpha=0.3)
    if len(exits) > 1:
        axes.legend(fontsize="small")
