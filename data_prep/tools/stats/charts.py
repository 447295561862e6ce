"""The content of a statistics page: titled sections, each with a table and, in most cases, a chart."""

from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_PERCENT = 0.001


@dataclass(frozen=True)
class Bars:
    """Named amounts, drawn as horizontal bars in this order."""

    unit: str
    items: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Mark:
    """A vertical line in a histogram, at a value of its axis."""

    value: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """Counts of values from `edges[i]` up to, not including, `edges[i + 1]`."""

    axis: str
    """What the values are, with their unit."""
    unit: str
    """What is counted."""
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    marks: tuple[Mark, ...] = ()
    is_share: bool = False
    """The values are shares, shown as percentages."""


@dataclass(frozen=True)
class Section:
    """One section: an explanation, a table and an optional chart."""

    title: str
    text: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chart: Bars | Histogram | None = None


def histogram_of(counts: Sequence[int], first: int, width: int, axis: str, unit: str, mark: Mark) -> Histogram:
    """Counts of the values `first`, `first` + 1, ... in bins `width` values wide; a bin of one value is centred on it."""
    bins = -(-len(counts) // width)
    grouped = tuple(sum(map(int, counts[i * width : (i + 1) * width])) for i in range(bins))
    start = first - 0.5 if width == 1 else float(first)
    return Histogram(axis, unit, tuple(start + i * width for i in range(bins + 1)), grouped, (mark,))


def amount(value: float) -> str:
    """A short number for an axis or a bar: 950, 12.3 k, 4.56 M."""
    for size, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            scaled = value / (1e3 if name == " k" else size)
            return f"{scaled:.3g}{name}"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.3g}"


def share(part: float, whole: float) -> str:
    """A share as a percentage; `-` if `whole` is 0, and never 0% for a positive share."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    if part and percent < _LEAST_PERCENT:
        return f"<{_LEAST_PERCENT}%"
    return f"{percent:.1f}%" if percent >= 0.1 or not part else f"{percent:.2g}%"
