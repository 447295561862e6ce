"""The report's section on the data: what was packed, what was left out and why, and how full the rows are.

Letters: R rows, T slots of a row.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.report import charts, page
from mose.dataset.manifest import SPLITS, Manifest, ShardEntry, read_manifest
from mose.dataset.row_index import RowIndex
from mose.errors import MoseError
from mose.files.storage import is_local

_MOST_NAMES = 10
# Rows are counted from so many shards at most, spread over the split: enough for a histogram, however large the data set.
_MOST_SHARDS = 64
_BINS = 40
_SPLITS = {
    "repositories": "repositories",
    "rows": "rows",
    "tokens": "tokens",
    "fill": "filled slots",
    "mixed_share": "rows of two repositories",
    "single_snippet_share": "rows of one snippet",
}


def data_section(dataset: Path | None, is_given: bool) -> tuple[page.Section, Manifest | None]:
    """The section, and the manifest; where the run's data set is not here (any more), the section says so.

    Raises:
        MoseError: the data set was named by the user (`is_given`) and cannot be read.
    """
    try:
        if dataset is None:
            raise MoseError("the run's config names no data set")
        manifest = read_manifest(dataset)
    except (MoseError, OSError) as error:
        if is_given:
            raise
        return page.Section("data", "Data", f"Not shown: {error}. `--data` names the folder.", []), None
    statistics = manifest.statistics
    lead = (
        f"{manifest.rows('train'):,} training rows of {manifest.sequence_length:,} slots, {manifest.tokens('train'):,} tokens; "
        f"the held-out repositories ({manifest.rows('held_out'):,} rows) are seen by no stage of training."
    )
    ledger = _ledger(statistics)
    parts = [
        page.figures(page.cell("Splits", _splits(manifest)), _row_lengths(dataset, manifest)),
        page.figures(
            page.cell("Licences of the packed files", _licences(statistics)),
            page.cell("Ledger of files", *ledger) if ledger else page.cell("Left out", _filters(statistics)),
            page.cell("Languages", _languages(manifest)),
        ),
        page.heading("Provenance"),
        page.facts(_provenance(dataset, manifest)),
    ]
    return page.Section("data", "Data", lead, parts), manifest


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is an object, else an empty one: statistics are for people, and older manifests lack some."""
    return value if isinstance(value, dict) else {}


def _splits(manifest: Manifest) -> str:
    found = mapping(manifest.statistics.get("splits"))
    splits = {name: found[name] for name in dict.fromkeys((*SPLITS, *found)) if name in found}
    rows = [
        [title, *(_split_cell(mapping(splits.get(split)), name) for split in splits)]
        for name, title in _SPLITS.items()
        if any(name in mapping(values) for values in splits.values())
    ]
    return page.table(["", *splits], rows)


def _split_cell(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, int | float):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{100 * value:.1f} %"


def _top(counts: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The largest amounts by name, and the sum of the others."""
    found = sorted(((name, float(count)) for name, count in counts.items() if isinstance(count, int | float)), key=_larger_first)
    rest = found[_MOST_NAMES:]
    return found[:_MOST_NAMES] + ([(f"{len(rest)} others", sum(value for _, value in rest))] if rest else [])


def _larger_first(item: tuple[str, float]) -> tuple[float, str]:
    return -item[1], item[0]


def _languages(manifest: Manifest) -> str:
    train = mapping(mapping(manifest.statistics.get("splits")).get("train"))
    return _bars("languages", _top(mapping(train.get("tokens_by_language"))), "tokens", "Training tokens.")


def _licences(statistics: Mapping[str, Any]) -> str:
    licences = mapping(mapping(statistics.get("filters")).get("licences"))
    items = _top({name: mapping(tally).get("bytes") for name, tally in licences.items()})
    return _bars("licences", items, "bytes", "As their repositories declare them.")


def _filters(statistics: Mapping[str, Any]) -> str:
    reasons = mapping(mapping(statistics.get("filters")).get("reasons"))
    sizes = {name: mapping(tally).get("bytes") for name, tally in reasons.items() if name != "kept"}
    items = [item for item in _top(sizes) if item[1]]
    return _bars("filters", items, "bytes", "Bytes of the files, by reason.")


def _bars(name: str, items: list[tuple[str, float]], unit: str, caption: str) -> str:
    if len(items) < 2:
        # One bar says nothing that its name does not.
        return page.facts([(items[0][0], f"{items[0][1]:,.0f} {unit}")]) if items else ""
    height = 0.7 + 0.27 * len(items)
    return page.figure(charts.draw(name, lambda made: charts.bars(made.subplots(), items, unit), (6.4, height)), caption)


def _row_lengths(dataset: Path, manifest: Manifest) -> str:
    entries = manifest.splits.get("train", ())
    if not is_local(dataset) or not entries:
        return ""
    places = np.unique(np.linspace(0, len(entries) - 1, min(len(entries), _MOST_SHARDS)).astype(int)).tolist()
    try:
        counts_T = sum(_tokens_of(dataset, entries[place], manifest.sequence_length) for place in places)
    except MoseError as error:
        return page.paragraph(f"Row lengths are not shown: {error}", "soft")
    assert isinstance(counts_T, np.ndarray)
    counted = "all" if len(places) == len(entries) else f"{len(places):,} of {len(entries):,}"
    svg = charts.draw(
        "row lengths", lambda made: charts.histogram(made.subplots(), counts_T, _BINS, "tokens of a row"), label="row lengths"
    )
    return page.figure(svg, f"Length of the training rows, of at most {manifest.sequence_length:,} slots; from {counted} shards.")


def _tokens_of(dataset: Path, entry: ShardEntry, slots: int) -> NDArray[np.int64]:
    """Rows by number of tokens [T + 1]."""
    index_R = RowIndex(entry.index_in(dataset), entry.rows).entries(np.arange(entry.rows))
    lengths_R = np.minimum(index_R["num_tokens"].astype(np.int64), slots)
    return np.bincount(lengths_R, minlength=slots + 1).astype(np.int64)


def _ledger(statistics: Mapping[str, Any]) -> list[str]:
    """The balance of files: what the sources gave, and what became of it."""
    ledger = mapping(statistics.get("ledger"))
    seen = [mapping(tally) for tally in mapping(ledger.get("seen")).values()]
    dropped, packed = mapping(ledger.get("dropped")), mapping(ledger.get("packed"))
    if not seen:
        return []
    try:
        given, left = (sum(int(tally[unit]) for tally in seen) for unit in ("files", "bytes"))
        out = {unit: sum(int(tally[unit]) for tally in dropped.values()) for unit in ("files", "bytes")}
        kept = {unit: int(packed[unit]) for unit in ("files", "bytes")}
    except (KeyError, TypeError, ValueError):
        return [page.paragraph("The manifest's ledger has another form and is not shown.", "soft")]
    balanced = given == kept["files"] + out["files"] and left == kept["bytes"] + out["bytes"]
    line = f"The sources gave {given:,} files: {kept['files']:,} were packed, {out['files']:,} were left out for a listed reason"
    if not balanced:
        return [page.remarks([f"{line}; the sides differ, see `mose-data verify`."], "short")]
    rows = [("packed", f"{kept['files']:,}", f"{kept['bytes']:,}", _share(kept["bytes"], left))]
    rows += [
        (name, f"{tally['files']:,}", f"{tally['bytes']:,}", _share(tally["bytes"], left))
        for name, tally in sorted(dropped.items(), key=lambda item: -int(item[1]["bytes"]))
    ]
    return [
        page.remarks([f"{line}. Files and bytes balance."], "good"),
        page.table(["outcome", "files", "bytes", "share of bytes"], rows, rules=[0]),
    ]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _provenance(dataset: Path, manifest: Manifest) -> list[tuple[str, str]]:
    return [
        ("folder", str(dataset)),
        ("content root (SHA-256 over all shards)", manifest.content_root),
        ("generation", f"{len(manifest.content_generations)} (each removal of files makes one)"),
        ("tokenizer", f"{manifest.tokenizer_fingerprint}, {manifest.vocabulary_size:,} tokens"),
        ("config of packing", f"{manifest.config_fingerprint}, mode {manifest.statistics.get('mode', 'dense')}"),
    ]
