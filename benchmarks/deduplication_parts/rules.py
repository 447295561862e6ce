"""Which rows of a group go: both rules of `chains` on one table, checked against the exact similarity of all of its pairs."""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from benchmarks.deduplication_parts.texts import similar_pairs
from data_prep.dedup.config import DedupConfig
from data_prep.dedup.minhash.shingles import normalize
from data_prep.dedup.runner import deduplicate

COLUMNS = ("code_a", "code_b")
THRESHOLD = 0.7
RULES: tuple[Literal["keep", "remove"], ...] = ("keep", "remove")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rows removed by each rule, those of them that are near no kept row, and kept rows that are near another kept row."""
    (path,) = options.parquet
    columns = [[normalize(text or "") for text in pq.read_table(path, columns=[name]).column(0).to_pylist()] for name in COLUMNS]
    near = [neighbours(texts) for texts in columns]
    found: dict[str, Any] = {
        "rows": len(columns[0]),
        "threshold": THRESHOLD,
        "natural_pairs_of_distinct_texts": sum(sum(map(len, texts.values())) for texts in near) // 2,
    }
    for rule in RULES:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            config = DedupConfig(str(Path(scratch) / "out"), (str(path),), COLUMNS, threshold=THRESHOLD, chains=rule)
            report = deduplicate(config)
            entries = [
                entry for part in Path(config.output, "groups").glob("*.parquet") for entry in pq.read_table(part).to_pylist()
            ]
        assert report is not None
        removed = {entry["id"] for entry in entries if not entry["kept"]}
        wrong, left = judged(columns, near, removed)
        found[rule] = {
            "removed": len(removed),
            "reasons": {name: count for name, count in report["reasons"].items() if count},
            "removed_but_near_no_kept_row": wrong,
            "kept_but_near_a_kept_row": left,
            "verification": report["phases"]["verify"],
        }
    return found


def neighbours(texts: list[str]) -> dict[str, set[str]]:
    """The other texts of a column that are near-duplicates of each, by exact similarity of all pairs."""
    distinct = sorted({text for text in texts if text})
    near: dict[str, set[str]] = {}
    for first, second in similar_pairs(distinct, THRESHOLD):
        near.setdefault(distinct[first], set()).add(distinct[second])
        near.setdefault(distinct[second], set()).add(distinct[first])
    return near


def judged(columns: list[list[str]], near: list[dict[str, set[str]]], removed: set[int]) -> tuple[int, int]:
    """Removed rows without a near-duplicate among the kept rows, and kept rows with one."""
    kept = [Counter(text for row, text in enumerate(texts) if text and row not in removed) for texts in columns]
    wrong = left = 0
    for row in range(len(columns[0])):
        others = 0
        for texts, neighbour, count in zip(columns, near, kept, strict=True):
            text = texts[row]
            others += sum(count[other] for other in (text, *neighbour.get(text, ())) if text)
            others -= row not in removed and bool(text)
        wrong += row in removed and not others
        left += row not in removed and others > 0
    return wrong, left
