"""Draws the charts of `mose-data stats` with matplotlib: each as SVG for the page, or all of them as one PNG."""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.tools.stats.charts import Bars, Histogram, Section, amount
from mose.errors import MoseError
from mose.files.atomic_file import atomic_write
from mose.files.streams import escaped

# Imported late, because matplotlib takes most of a second to import and only `--output` needs it.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 2
_LABEL_CHARACTERS = 30
_BAR, _MARK, _GRID = "#3b6ea8", "#b3402a", "#d5d8dc"
# Points, 72 per inch; a browser shows a point as 4/3 pixels.
_WIDTH, _HISTOGRAM_HEIGHT, _BAR_HEIGHT, _AXIS_HEIGHT = 420, 170, 15, 36
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def require_matplotlib(output: Path) -> None:
    """Check that charts can be drawn into `output`.

    Raises:
        MoseError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MoseError(
            f"{output}: output: a {output.suffix} needs matplotlib, which is not installed; install mose-at-scale[data]"
        ) from None


def draw_svg(chart: Bars | Histogram) -> str:
    """The chart as one `<svg>` element; shortened names have the full name as tooltip."""
    import matplotlib

    file = io.StringIO()
    # Text stays text, so that it can be searched and copied; the fixed salt makes the ids, and so the bytes, reproducible.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mose-data stats"}):
        draw_figure(chart).savefig(file, format="svg", metadata=_NO_METADATA)
    # The page embeds only the element, without the XML declaration.
    text = file.getvalue()
    text = text[text.index("<svg") :]
    if isinstance(chart, Bars):
        for number, (name, _) in enumerate(chart.items):
            full_name = html.escape(escaped(name))
            title = f"<title>{full_name}</title>" if len(name) > _LABEL_CHARACTERS else ""
            text = text.replace(f'<g id="{_label_id(number)}">', f"<g>{title}")
    description = f"bars of {chart.unit}" if isinstance(chart, Bars) else f"histogram of {chart.axis}"
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(escaped(description))}" ', 1)


def draw_figure(chart: Bars | Histogram) -> "Figure":
    """The chart as a separate figure, in its size on the page."""
    # Not pyplot, which keeps every figure in a global list.
    from matplotlib.figure import Figure

    height = _BAR_HEIGHT * len(chart.items) + _AXIS_HEIGHT if isinstance(chart, Bars) else _HISTOGRAM_HEIGHT
    figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
    _draw(figure.subplots(), chart)
    return figure


def draw_png(title: str, sections: Sequence[Section], path: Path) -> None:
    """Write the charts of the sections as one PNG, atomically."""
    from matplotlib.figure import Figure

    charts = [(section.title, section.chart) for section in sections if section.chart]
    lines = -(-len(charts) // _COLUMNS)
    figure = Figure(figsize=(13, 3.4 * lines), dpi=100, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for axis in axes[len(charts) :]:
        axis.set_axis_off()
    for axis, (name, chart) in zip(axes, charts, strict=False):
        axis.set_title(name, loc="left", fontsize=10)
        _draw(axis, chart)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _draw(axis: Any, chart: Bars | Histogram) -> None:
    if isinstance(chart, Bars):
        _draw_bars(axis, chart)
    else:
        _draw_histogram(axis, chart)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)


def _draw_bars(axis: Any, chart: Bars) -> None:
    places = range(len(chart.items))
    values = [value for _, value in chart.items]
    # With an edge, a bar of 0 is visible.
    drawn = axis.barh(places, values, color=_BAR, edgecolor=_BAR, linewidth=0.5, height=0.7)
    axis.bar_label(drawn, [amount(value) for value in values], fontsize=8, padding=3)
    axis.set_yticks(places, [_plain(shorten(name, _LABEL_CHARACTERS)) for name, _ in chart.items])
    for number, label in enumerate(axis.get_yticklabels()):
        label.set_gid(_label_id(number))
    axis.invert_yaxis()
    # Room for the number after the longest bar.
    axis.margins(x=0.14, y=0.01)
    axis.set_xlabel(_plain(chart.unit), fontsize=8)
    axis.xaxis.set_major_formatter(lambda value, _: amount(value))
    axis.tick_params(axis="y", length=0)


def _draw_histogram(axis: Any, chart: Histogram) -> None:
    widths = [end - start for start, end in zip(chart.edges[:-1], chart.edges[1:], strict=True)]
    axis.bar(chart.edges[:-1], chart.counts, widths, align="edge", color=_BAR, edgecolor="white", linewidth=0.4)
    low, high = chart.edges[0], chart.edges[-1]
    for mark in chart.marks:
        label = f"{mark.label} {tick_label(mark.value, is_share=chart.is_share)}"
        axis.axvline(min(max(mark.value, low), high), color=_MARK, linestyle="--", linewidth=1, label=label)
    if chart.marks:
        axis.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderpad=0)
    axis.set_xlabel(_plain(chart.axis), fontsize=8)
    axis.xaxis.set_major_formatter(lambda value, _: tick_label(value, is_share=chart.is_share))
    axis.yaxis.set_major_formatter(lambda value, _: amount(value))
    axis.grid(axis="y", color=_GRID, linewidth=0.6)
    axis.set_ylabel(_plain(chart.unit), fontsize=8)


def _label_id(number: int) -> str:
    return f"bar-label-{number}"


def _plain(text: str) -> str:
    """Text as matplotlib shows it unchanged: a dollar sign would begin a formula, and XML holds no control characters."""
    return escaped(text).replace("$", r"\$")


def tick_label(value: float, *, is_share: bool) -> str:
    """A value of the axis, as a percentage where it is a share."""
    if is_share:
        return f"{100 * value:.4g}%"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def shorten(text: str, characters: int) -> str:
    """`text` shortened to at most `characters` characters by an ellipsis in the middle."""
    if len(text) <= characters:
        return text
    end = (characters - 1) // 2
    return f"{text[: characters - 1 - end]}\u2026{text[-end:]}"
