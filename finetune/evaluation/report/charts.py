"""The report's own charts, and any chart as an inline SVG."""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from finetune.evaluation.report.held_out import exit_series
from finetune.evaluation.table import chart_label
from mose.files.streams import escaped

SMALL, WIDE = (6.4, 3.9), (12.8, 4.6)
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_BAR = "#31688e"
# One hue from light to dark: exits are ordered by depth, and so are the lines.
_SHALLOW, _DEEP = 0.85, 0.15
# Values of single batches jump: the line is their mean over so many logged intervals.
_SMOOTHED = 9


def draw(name: str, paint: Callable[[Figure], None], size: tuple[float, float] = SMALL, label: str = "") -> str:
    """A new figure, painted, as an `<svg>` element; `name` differs for each figure of the page."""
    with _style(name):
        made = Figure(figsize=size, layout="constrained")
        paint(made)
        return _svg(made, name, label or name)


def convert(name: str, make: Callable[[], Figure], label: str = "") -> str:
    """The figure that `make` returns as an `<svg>` element."""
    with _style(name):
        return _svg(make(), name, label or name)


def _style(name: str) -> Any:
    # Text stays text, so that it can be searched; the salt makes ids, and so the page's bytes, reproducible.
    values: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "axes.spines.top": False, "axes.spines.right": False}
    more: dict[Any, Any] = {
        "axes.edgecolor": "#8a97a3",
        "axes.labelcolor": "#3e4c59",
        "xtick.color": "#5b6874",
        "ytick.color": "#5b6874",
    }
    sizes: dict[Any, Any] = {
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "font.size": 9,
        "legend.frameon": False,
    }
    return matplotlib.rc_context({**values, **more, **sizes})


def _svg(made: Figure, name: str, label: str) -> str:
    file = io.StringIO()
    made.savefig(file, format="svg", metadata=_NO_METADATA)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # All figures share the page, so each gets ids of its own.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{re.sub(r'[^a-z0-9]', '-', name.lower())}-", text)
    return escaped(text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1))


def exit_color(index: int, count: int) -> tuple[float, float, float, float]:
    """The color of the exit at this place, shallow to deep."""
    share = index / max(1, count - 1)
    red, green, blue, alpha = colormaps["viridis"](_SHALLOW + share * (_DEEP - _SHALLOW))
    return red, green, blue, alpha


def smoothed(values: Sequence[float]) -> NDArray[np.float64]:
    """Running mean over `_SMOOTHED` values, over fewer at the start."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - _SMOOTHED)
    means: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def by_exit(
    axes: Axes, metrics: list[dict[str, Any]], training: tuple[str, str], validation: tuple[str, str], *, smooth: bool = False
) -> bool:
    """Lines of a scalar of training and dots of one of validation for each exit; False if the run has neither."""
    lines, dots = exit_series(metrics, *training), exit_series(metrics, *validation)
    names = sorted(lines.keys() | dots.keys())
    for index, name in enumerate(names):
        color, shown = exit_color(index, len(names)), chart_label(name)
        if name in lines:
            steps, values = lines[name]
            axes.plot(steps, smoothed(values) if smooth else values, color=color, linewidth=1.5, label=f"exit {shown}")
        if name in dots:
            # The caption says what dots are: a second entry for each exit would fill the chart.
            label = None if name in lines else f"exit {shown}"
            axes.plot(*dots[name], "o-", color=color, markersize=5, linewidth=0.8, markeredgecolor="white", label=label)
    axes.grid(alpha=0.25)
    if names:
        axes.legend(fontsize=8, ncols=2 if len(axes.get_lines()) > 4 else 1)
    return bool(names)


def series_of(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one scalar; intervals whose value is null are left out."""
    found = [(int(line["step"]), float(line[name])) for line in metrics if isinstance(line.get(name), int | float)]
    return [step for step, _ in found], [value for _, value in found]


def two_scales(axes: Axes, metrics: Sequence[Mapping[str, Any]], left: tuple[str, str], right: tuple[str, str]) -> None:
    """Two scalars (name, title) over the steps, each with a scale of its own."""
    other = axes.twinx()
    other.spines["right"].set_visible(True)
    for place, (name, title), color in zip((axes, other), (left, right), (_BAR, "#d98b3a"), strict=True):
        place.plot(*series_of(metrics, name), color=color, linewidth=1.3)
        place.set_ylabel(title, color=color)
        place.set_ylim(bottom=0)
    axes.set_xlabel("optimiser step")
    axes.grid(alpha=0.25)


def bars(axes: Axes, items: Sequence[tuple[str, float]], unit: str) -> None:
    """Named amounts as horizontal bars, in this order from above."""
    places = range(len(items))
    drawn = axes.barh(places, [value for _, value in items], color=_BAR, height=0.66)
    axes.bar_label(drawn, [amount(value) for _, value in items], fontsize=8, padding=3, color="#3e4c59")
    axes.set_yticks(places, [chart_label(shortened(name)) for name, _ in items])
    axes.invert_yaxis()
    axes.margins(x=0.16, y=0.02)
    axes.xaxis.set_major_formatter(lambda value, _: amount(value))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit)


def histogram(axes: Axes, counts: NDArray[np.int64], bins: int, what: str) -> None:
    """How often each value 0, 1, ... occurs, in at most `bins` bars, with a line at the mean."""
    width = max(1, -(-len(counts) // bins))
    sums = np.add.reduceat(counts, np.arange(0, len(counts), width))
    axes.bar(np.arange(len(sums)) * width, sums, width, align="edge", color=_BAR, edgecolor="white", linewidth=0.4)
    mean = float(counts @ np.arange(len(counts)) / max(1, counts.sum()))
    axes.axvline(mean, color="#d98b3a", linestyle="--", linewidth=1.3, label=f"mean {mean:,.1f}")
    # Most rows are full: on a linear axis the others would not be seen.
    axes.set_yscale("log")
    axes.set(xlabel=what, ylabel="rows, logarithmic")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(fontsize=8, loc="upper left")


def amount(value: float) -> str:
    """A short number for an axis or a bar: 950, 12.3 k, 4.56 M."""
    for size, scale, name in ((1e12, 1e12, " T"), (1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if abs(value) >= size:
            return f"{value / scale:.3g}{name}"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.3g}"


def shortened(name: str, characters: int = 34) -> str:
    """`name` with an ellipsis in its middle where it is too long for a chart."""
    half = (characters - 1) // 2
    return name if len(name) <= characters else f"{name[: characters - 1 - half]}\u2026{name[-half:]}"
