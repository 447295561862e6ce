"""Builds the sections of `mose-data stats`: one function per section, in the order of the page.

Letters: T slots of a row.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from data_prep.filters.filters import COPY_OF_HELD_OUT, DUPLICATE_ACROSS
from data_prep.tools.removal.journal import Removal
from data_prep.tools.stats.charts import Bars, Histogram, Mark, Section, histogram_of, share
from data_prep.tools.stats.counts import MOST_SNIPPETS, DatasetStatistics, ShardFill, SplitStatistics
from data_prep.tools.stats.held_out_copies import HeldOutCopies
from mose.array_types import INT64_ARRAY
from mose.dataset.manifest import SPLITS, Manifest

_MOST_NAMES = 15
_LENGTH_BINS = 32
# ModularStarEncoder's paper: mean tokens of a file alone in a row of 2,048, and of a row packed with in-context snippets.
PAPER_LONE_TOKENS = 630
PAPER_PACKED_TOKENS = 1300


def stats_sections(
    manifest: Manifest,
    statistics: DatasetStatistics,
    removals: Sequence[Removal] = (),
    copies: HeldOutCopies | None = None,
) -> list[Section]:
    """All sections; charts show the split train (another one if it is empty), tables all splits."""
    shown = next(
        (split for split in (*SPLITS, *statistics.splits) if split in statistics.splits and statistics.splits[split].rows),
        SPLITS[0],
    )
    main = statistics.splits[shown]
    sections = [
        _overview(statistics),
        _names(
            "Text tokens by language", "language", {split: found.languages for split, found in statistics.splits.items()}, shown
        ),
        _names("Text tokens by licence", "licence", {split: found.licences for split, found in statistics.splits.items()}, shown),
        _row_lengths(main, shown),
        _lone_and_packed(statistics),
        _snippets_a_row(main, shown),
        _snippet_lengths(main, shown),
        _labels(statistics),
        _dropped(manifest),
        _largest_repositories(main, shown),
        fill_section(main.fills, shown),
    ]
    sections += [_copies(manifest, copies)] if copies else []
    return sections + ([_removed(removals)] if removals else [])


def _overview(statistics: DatasetStatistics) -> Section:
    slots = statistics.sequence_length
    rows: list[tuple[str, ...]] = []
    splits = list(statistics.splits.values())
    for title, name in (("rows", "rows"), ("repositories", "repositories"), ("files", "files"), ("snippets", "snippets")):
        rows.append((title, *(f"{getattr(found, name):,}" for found in splits)))
    rows.append(("filled slots", *(f"{found.tokens:,}" for found in splits)))
    rows.append(("text tokens", *(f"{found.text_tokens:,}" for found in splits)))
    rows.append(("fill", *(share(found.tokens, found.rows * slots) for found in splits)))
    rows.append(("emptied rows", *(f"{found.emptied_rows:,}" for found in splits)))
    counted = (
        "every shard"
        if statistics.counted_shards == statistics.shards
        else f"{statistics.counted_shards} of {statistics.shards} shards"
    )
    text = f"Counted from {counted}; rows of {slots:,} slots. Text tokens are filled slots without <sep> and <cls>."
    return Section("At a glance", text, ("", *statistics.splits), tuple(rows))


def _names(title: str, what: str, totals: dict[str, Counter[str]], shown: str) -> Section:
    """Tokens by name: the most frequent names, and the others in one row."""
    names = [name for name, _ in totals[shown].most_common(_MOST_NAMES)]
    names += sorted({name for counts in totals.values() for name in counts} - set(totals[shown]))[: _MOST_NAMES - len(names)]
    all_names = {name for counts in totals.values() for name in counts}
    rest = len(all_names) - len(names)
    rows = [(name, {split: counts[name] for split, counts in totals.items()}) for name in names]
    if rest:
        left = {split: sum(counts.values()) - sum(counts[name] for name in names) for split, counts in totals.items()}
        rows.append((f"{rest} others", left))
    whole = sum(totals[shown].values())
    cells = tuple((name, *(f"{counts[split]:,}" for split in totals), share(counts[shown], whole)) for name, counts in rows)
    bars = Bars("text tokens", tuple((name, float(counts[shown])) for name, counts in rows if counts[shown]))
    text = f"{len(all_names)} in all. The bars are of the split {shown}."
    return Section(title, text, (what, *totals, f"share of {shown}"), cells, bars)


def _row_lengths(statistics: SplitStatistics, shown: str) -> Section:
    slots = len(statistics.row_tokens) - 1
    counts = statistics.row_tokens[1:]
    mark = Mark(mean_of(counts, 1), "mean")
    chart = histogram_of(counts.tolist(), 1, max(1, slots // _LENGTH_BINS), "tokens of a row", "rows", mark)
    text = f"Filled slots of each row of {shown}, <sep> and <cls> included; a row has {slots:,}. Emptied rows are left out."
    return Section("Row length", text, ("tokens of a row", ""), _quantiles(counts, 1), chart)


def _lone_and_packed(statistics: DatasetStatistics) -> Section:
    """The gain of packing: mean filled slots with one file per row against those of packed rows."""
    rows, bars = [], []
    for split, found in statistics.splits.items():
        if not found.rows:
            continue
        lone = found.lone_file_tokens / max(1, found.files)
        packed_tokens = found.tokens - found.single_snippet_tokens
        packed = packed_tokens / max(1, found.packed_rows)
        single = int(found.snippets_a_row[1])
        single_mean = f"{found.single_snippet_tokens / single:,.0f}" if single else "-"
        rows.append((split, f"{lone:,.0f}", f"{packed:,.0f}", f"{packed / max(lone, 1):.2f}x", single_mean, f"{single:,}"))
        bars += [(f"{split}: a file alone", lone), (f"{split}: packed", packed)]
    paper = f"{PAPER_PACKED_TOKENS / PAPER_LONE_TOKENS:.2f}x"
    rows.append(("the paper", f"{PAPER_LONE_TOKENS:,}", f"{PAPER_PACKED_TOKENS:,}", paper, "-", "-"))
    bars += [("the paper: a file alone", float(PAPER_LONE_TOKENS)), ("the paper: packed", float(PAPER_PACKED_TOKENS))]
    header = ("", "a file alone", "a packed row", "gain", "a row of one snippet", "such rows")
    text = "Mean filled slots with one file per row, truncated to the row, against those of the rows with several snippets."
    return Section("One file per row against packed rows", text, header, tuple(rows), Bars("tokens, mean", tuple(bars)))


def _snippets_a_row(statistics: SplitStatistics, shown: str) -> Section:
    counts = statistics.snippets_a_row
    rows = tuple(
        (f"{number}" if number < MOST_SNIPPETS else f"{number} or more", f"{count:,}", share(count, statistics.rows))
        for number, count in enumerate(counts.tolist())
        if count
    )
    last = int(np.flatnonzero(counts)[-1]) if counts.any() else 0
    mark = Mark(statistics.snippets / max(1, statistics.rows), "mean")
    chart = histogram_of(counts[: last + 1].tolist(), 0, 1, "snippets of a row", "rows", mark)
    text = f"Snippets of each row of {shown}; a row of one carries no in-context signal."
    return Section("Snippets per row", text, ("snippets", "rows", "share"), rows[:_MOST_NAMES], chart)


def _snippet_lengths(statistics: SplitStatistics, shown: str) -> Section:
    lengths = statistics.snippet_tokens[1:]
    last = int(np.flatnonzero(lengths)[-1]) if lengths.any() else 0
    mark = Mark(mean_of(lengths, 1), "mean")
    width = -(-(last + 1) // _LENGTH_BINS)
    chart = histogram_of(lengths[: last + 1].tolist(), 1, width, "tokens of a snippet", "snippets", mark)
    text = f"Tokens of each snippet of {shown}, without <sep>: a short file whole, or a piece of a long one."
    return Section("Snippet length", text, ("tokens of a snippet", ""), _quantiles(lengths, 1), chart)


def _labels(statistics: DatasetStatistics) -> Section:
    rows, bars = [], []
    for split, found in statistics.splits.items():
        unmixed = found.rows - found.emptied_rows - found.mixed_rows
        cells = [
            f"{found.mixed_rows:,}",
            share(found.mixed_rows, found.mixed_rows + unmixed),
            f"{unmixed:,}",
            f"{found.single_file_rows:,}",
        ]
        rows.append((split, *cells, share(found.single_file_rows, unmixed), f"{int(found.snippets_a_row[1]):,}"))
        bars += [(f"{split}: mixed", float(found.mixed_rows)), (f"{split}: of one repository", float(unmixed))]
        bars += [(f"{split}: of one file", float(found.single_file_rows))]
    header = ("", "mixed", "share", "of one repository", "of one file", "of the unmixed", "of one snippet")
    text = (
        "A mixed row alternates two repositories. In a row of one file, the label tests whether a text continues, not whether it "
        "comes from the same repository."
    )
    return Section("Labels", text, header, tuple(rows), Bars("rows", tuple(bar for bar in bars if bar[1])))


def _dropped(manifest: Manifest) -> Section:
    reasons = manifest.statistics.get("filters", {}).get("reasons", {})
    found = sorted(((name, tally) for name, tally in reasons.items() if tally["files"]), key=lambda item: -item[1]["bytes"])
    whole_files, whole = (sum(tally[unit] for _, tally in found) for unit in ("files", "bytes"))
    rows = tuple(
        (name, f"{tally['files']:,}", share(tally["files"], whole_files), f"{tally['bytes']:,}", share(tally["bytes"], whole))
        for name, tally in found
    )
    bars = tuple((name, float(tally["bytes"])) for name, tally in found if name != "kept")
    text = "What the filters did with the files that were read; bars are bytes that were dropped."
    return Section("Filters", text, ("files", "number", "share", "bytes", "share"), rows, Bars("bytes", bars) if bars else None)


def _copies(manifest: Manifest, copies: HeldOutCopies) -> Section:
    """Copies across repositories: what makes validation measure memory, and what trains on a file more often than once."""
    reasons = manifest.statistics.get("filters", {}).get("reasons", {})

    def dropped(reason: str) -> str:
        return f"{reasons.get(reason, {'files': 0})['files']:,}"

    rows = (
        ("held-out files", f"{copies.held_out:,}"),
        ("held-out files that also stand in train", f"{copies.in_train:,}"),
        ("their copies dropped from train", dropped(COPY_OF_HELD_OUT)),
        ("copies across train repositories dropped", dropped(DUPLICATE_ACROSS)),
        ("copies across train repositories kept and counted", f"{manifest.statistics.get('duplicates_in_train', 0):,}"),
    )
    text = "Files with the same bytes, by the blob ids of all rows; held-out files are distinct ones."
    return Section("Copies across repositories", text, ("", "files"), rows)


def _largest_repositories(statistics: SplitStatistics, shown: str) -> Section:
    found = statistics.largest_repositories.most_common(_MOST_NAMES)
    rows = tuple((name, f"{tokens:,}", share(tokens, statistics.text_tokens)) for name, tokens in found)
    text = f"Text tokens in rows of {shown}, which holds {statistics.repositories:,} repositories."
    bars = Bars("text tokens", tuple((name, float(tokens)) for name, tokens in found))
    return Section("Largest repositories", text, ("repository", "text tokens", f"share of {shown}"), rows, bars)


def _removed(removals: Sequence[Removal]) -> Section:
    rows = tuple(
        (entry.date, f"{len(entry.blobs):,}", f"{len(entry.repositories):,}", f"{entry.rows:,}", f"{entry.text_tokens:,}")
        for entry in removals
    )
    header = ("removed on", "blobs", "repositories", "rows changed", "text tokens")
    return Section("Removals", "Files removed by `mose-data remove`; rows kept their numbers.", header, rows)


def mean_of(counts: INT64_ARRAY, first: int = 0) -> float:
    """The mean of the values `first`, `first` + 1, ..., weighted by `counts`; 0 without counts."""
    return float(counts @ np.arange(first, first + len(counts)) / max(1, counts.sum()))


def _quantiles(counts: INT64_ARRAY, first: int) -> tuple[tuple[str, ...], ...]:
    """Number, mean and quantiles of the values `first`, `first` + 1, ..., weighted by `counts`."""
    total = np.cumsum(counts)
    rows = [("number", f"{int(counts.sum()):,}"), ("mean", f"{mean_of(counts, first):,.1f}")]
    for percent in (1, 10, 25, 50, 75, 90, 99):
        value = first + int(np.searchsorted(total, max(1, total[-1] * percent / 100))) if total[-1] else 0
        rows.append(("median" if percent == 50 else f"{percent} %", f"{value:,}"))
    return tuple(rows)


_BINS = 24


# Tukey's outer fence: a shard more than three interquartile ranges beyond the quartiles is an outlier.
_FENCE = 3.0


# Minimum distance of an outlier: with nearly equal shards, the fence alone would report irrelevant differences.
_LEAST_DIFFERENCE = 0.01


_NAMED = 10


def outliers(fills: Sequence[ShardFill]) -> list[ShardFill]:
    """Shards whose fill is far from that of the others, the farthest first."""
    values = np.array([shard.fill for shard in fills])
    if not len(values):
        return []
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    reach = max(_FENCE * (high - low), _LEAST_DIFFERENCE)
    found = [shard for shard in fills if not low - reach <= shard.fill <= high + reach]
    return sorted(found, key=lambda shard: -abs(shard.fill - middle))


def fill_section(fills: Sequence[ShardFill], split: str) -> Section:
    """The distribution of fill over the shards of a split, with outliers named."""
    values = np.array([shard.fill for shard in fills])
    strange = outliers(fills)
    rows = [("shards", f"{len(fills):,}", "")]
    for name, quantile in (("least", 0.0), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("most", 1.0)):
        rows += [(name, f"{np.quantile(values, quantile):.2%}", "")] if len(values) else []
    rows += [(f"outlier: {shard.path}", f"{shard.fill:.2%}", f"{shard.rows:,} rows") for shard in strange[:_NAMED]]
    rows += [(f"{len(strange) - _NAMED} more outliers", "", "")] if len(strange) > _NAMED else []
    message = f"{len(strange)} stand out" if strange else "none stands out"
    text = f"Share of filled slots of each shard of {split} (one per task): {message}."
    return Section("Fill by task", text, ("", "fill", ""), tuple(rows), _chart(values) if len(values) else None)


def _chart(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Histogram:
    low = min(float(values.min()), float(values.max()) - 0.02)
    counts, edges = np.histogram(values, bins=_BINS, range=(low, float(values.max()) + 1e-9))
    mark = Mark(float(np.median(values)), "median")
    return Histogram("fill", "shards", tuple(edges.tolist()), tuple(counts.tolist()), (mark,), is_share=True)
