"""Checks the ledger of a data set: every file that its sources gave was packed, or dropped for a reason that is listed."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from data_prep.filters.decontamination import CONTAMINATED
from data_prep.filters.filters import REPLACED
from data_prep.tools.dropped import dropped_batches
from mose.dataset.manifest import MANIFEST_NAME
from mose.errors import MoseError
from mose.files.records import from_plain

_UNITS = ("files", "bytes")
Tallies = dict[str, dict[str, int]]


def ledger_problems(dataset: Path, ledger: Any) -> list[str]:
    """One line per imbalance; none for a data set of an earlier version, which has no ledger.

    Both sides are counted apart: files as each source gives them, and their outcomes by the filters. A file that a step loses
    without a word is on the left side only.
    """
    if ledger is None:
        return []
    place = f"{dataset / MANIFEST_NAME}: statistics.ledger"
    try:
        seen, dropped, packed = (
            from_plain(Tallies, part) for part in (ledger["seen"], ledger["dropped"], {"": ledger["packed"]})
        )
        left = {unit: sum(tally[unit] for tally in seen.values()) for unit in _UNITS}
        right = {unit: sum(tally[unit] for tally in [*packed.values(), *dropped.values()]) for unit in _UNITS}
    except (ValueError, TypeError, KeyError) as error:
        return [f"{place}: not a ledger: {error}; expected it as `mose-data` wrote it"]
    problems = [
        f"{place}: the sources gave {left[unit]:,} {unit}, {right[unit]:,} were packed or dropped"
        for unit in _UNITS
        if left[unit] != right[unit]
    ]
    try:
        return [*problems, *_log_problems(dataset, place, dropped)]
    except MoseError as error:
        return [*problems, str(error)]


def _log_problems(dataset: Path, place: str, dropped: Tallies) -> list[str]:
    """Reasons for which the lists of dropped files hold other numbers than the ledger."""
    files: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for batch in dropped_batches(dataset):
        # A line without a path stands for a repository of which nothing could be read.
        lines = batch.filter(pc.not_equal(batch.column("path"), ""))
        table = lines.select(["reason", "num_bytes"]).to_pydict()
        files.update(table["reason"])
        for reason, size in zip(table["reason"], table["num_bytes"], strict=True):
            sizes[reason] += size
    problems = []
    for reason in sorted({*files, *dropped} - {CONTAMINATED, REPLACED}):
        said = dropped.get(reason, {"files": 0, "bytes": 0})
        if (said["files"], said["bytes"]) != (files[reason], sizes[reason]):
            found = f"the lists of dropped files hold {files[reason]:,} of {sizes[reason]:,} bytes"
            problems.append(f"{place}.dropped.{reason}: {said['files']:,} files of {said['bytes']:,} bytes, {found}")
    return problems
