"""Bars and histograms as small SVG pictures that stand inside a page: no scripts, no styles from elsewhere."""

import html
import math
from collections.abc import Sequence

from data_prep.tools.stats.charts import Bars, Histogram, amount

WIDTH = 560
_BAR, _MARK, _GRID, _TEXT = "#3b6ea8", "#b3402a", "#d5d8dc", "#222222"
_ROW_HEIGHT = 20
_LABEL_WIDTH = 200
_VALUE_WIDTH = 70
_LABEL_CHARACTERS = 30
_HEIGHT, _LEFT, _TOP, _BOTTOM = 220, 56, 34, 40
_LEAST_TICKS = 4


def draw(chart: Bars | Histogram) -> str:
    """The chart as one `<svg>` element."""
    return draw_bars(chart) if isinstance(chart, Bars) else draw_histogram(chart)


def draw_bars(chart: Bars) -> str:
    """Horizontal bars with their names left and amounts right; the longest takes the whole width."""
    most = max((value for _, value in chart.items), default=0) or 1
    room = WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    parts = []
    for number, (name, value) in enumerate(chart.items):
        top = number * _ROW_HEIGHT
        width = max(1.0, room * value / most)
        parts.append(_text(_LABEL_WIDTH - 6, top + 14, shorten(name, _LABEL_CHARACTERS), "end", title=name))
        parts.append(f'<rect x="{_LABEL_WIDTH}" y="{top + 3}" width="{width:.1f}" height="{_ROW_HEIGHT - 6}" fill="{_BAR}"/>')
        parts.append(_text(_LABEL_WIDTH + width + 5, top + 14, amount(value)))
    height = len(chart.items) * _ROW_HEIGHT + _ROW_HEIGHT
    parts.append(_text(_LABEL_WIDTH, height - 5, chart.unit))
    return _svg(height, parts, f"bars of {chart.unit}")


def draw_histogram(chart: Histogram) -> str:
    """Upright bars over a linear axis, with a dashed line at each mark."""
    low, high = chart.edges[0], chart.edges[-1]
    most = max(chart.counts, default=0) or 1
    bottom, right = _HEIGHT - _BOTTOM, WIDTH - 12

    def across(value: float) -> float:
        return _LEFT + (right - _LEFT) * (value - low) / ((high - low) or 1)

    def up(count: float) -> float:
        return bottom - (bottom - _TOP) * count / most

    parts = []
    for count in ticks(0, most)[1:]:
        parts.append(_line(_LEFT, up(count), right, up(count), _GRID))
        parts.append(_text(_LEFT - 6, up(count) + 4, amount(count), "end"))
    for start, end, count in zip(chart.edges[:-1], chart.edges[1:], chart.counts, strict=True):
        if count:
            x, y = across(start), min(up(count), bottom - 1)
            width = max(1.0, across(end) - x - 1)
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{bottom - y:.1f}" fill="{_BAR}"/>')
    parts.append(_line(_LEFT, bottom, right, bottom, _TEXT))
    for tick in ticks(low, high):
        parts.append(_line(across(tick), bottom, across(tick), bottom + 4, _TEXT))
        parts.append(_text(across(tick), bottom + 17, tick_label(tick, is_share=chart.is_share), "middle"))
    for mark in chart.marks:
        x = across(min(max(mark.value, low), high))
        label = f"{mark.label} {tick_label(mark.value, is_share=chart.is_share)}"
        parts.append(_line(x, _TOP - 6, x, bottom, _MARK, dashed=True))
        parts.append(_text(x, _TOP - 10, label, "end" if x > WIDTH / 2 else "start", _MARK))
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 6, chart.axis, "middle"))
    parts.append(_text(_LEFT, _TOP - 20, chart.unit, "end"))
    return _svg(_HEIGHT, parts, f"histogram of {chart.axis}")


def ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two ends, four to ten of them."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span))
    size = next(power * part for part in (1.0, 0.5, 0.2) if span / (power * part) >= _LEAST_TICKS)
    return [number * size for number in range(math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9) + 1)]


def tick_label(value: float, *, is_share: bool) -> str:
    """A value of the axis, as a percentage where it is a share."""
    if is_share:
        return f"{100 * value:.4g}%"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def shorten(text: str, characters: int) -> str:
    """At most so many characters, the middle left out."""
    if len(text) <= characters:
        return text
    end = (characters - 1) // 2
    return f"{text[: characters - 1 - end]}\u2026{text[-end:]}"


def _svg(height: int, parts: Sequence[str], description: str) -> str:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    label = f'role="img" aria-label="{html.escape(description)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {label}>{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = _TEXT, title: str = "") -> str:
    inside = html.escape(text) + (f"<title>{html.escape(title)}</title>" if title and title != text else "")
    font = 'font-family="sans-serif" font-size="12"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" {font}>{inside}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashes}/>'
