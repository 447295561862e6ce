"""`mose-data stats --output page.png`: the same sections as one picture, drawn with matplotlib where that is installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.tools.stats.charts import Bars, Histogram, Section, amount
from data_prep.tools.stats.svg import shorten, tick_label
from mose.errors import MoseError
from mose.files.atomic_file import atomic_write

_COLUMNS = 2
_LABEL_CHARACTERS = 34
_BAR, _MARK = "#3b6ea8", "#b3402a"


def draw_picture(title: str, sections: Sequence[Section], path: Path) -> None:
    """Write the charts of the sections as a PNG, atomically.

    Raises:
        MoseError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter
    except ImportError:
        raise MoseError(f"{path}: output: a .png needs matplotlib, which is not installed; expected a name in .html") from None
    charts = [(section.title, section.chart) for section in sections if section.chart]
    lines = -(-len(charts) // _COLUMNS)
    figure = Figure(figsize=(13, 3.4 * lines), dpi=100, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for axis in axes[len(charts) :]:
        axis.set_axis_off()
    for axis, (name, chart) in zip(axes, charts, strict=False):
        axis.set_title(name, loc="left", fontsize=10)
        if isinstance(chart, Bars):
            _draw_bars(axis, chart)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
        else:
            _draw_histogram(axis, chart)
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
        axis.tick_params(labelsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _draw_bars(axis: Any, chart: Bars) -> None:
    # A dollar sign would begin a formula.
    names = [shorten(name, _LABEL_CHARACTERS).replace("$", r"\$") for name, _ in chart.items]
    places = range(len(names))
    drawn = axis.barh(places, [value for _, value in chart.items], color=_BAR)
    axis.bar_label(drawn, [amount(value) for _, value in chart.items], fontsize=7, padding=2)
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel(chart.unit, fontsize=8)


def _draw_histogram(axis: Any, chart: Histogram) -> None:
    widths = [end - start for start, end in zip(chart.edges[:-1], chart.edges[1:], strict=True)]
    axis.bar(chart.edges[:-1], chart.counts, widths, align="edge", color=_BAR, edgecolor="white", linewidth=0.4)
    for mark in chart.marks:
        label = f"{mark.label} {tick_label(mark.value, is_share=chart.is_share)}"
        axis.axvline(mark.value, color=_MARK, linestyle="--", linewidth=1, label=label)
    if chart.marks:
        axis.legend(fontsize=8)
    axis.set_xlabel(chart.axis, fontsize=8)
    axis.xaxis.set_major_formatter(lambda value, _: tick_label(value, is_share=chart.is_share))
    axis.set_ylabel(chart.unit, fontsize=8)
