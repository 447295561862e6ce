"""What the data set holds: rows by split, language, licence and model, lengths, what was left out; as numbers and as sections."""

from collections import Counter
from typing import Any

from data_prep.sources.repositories import HELD_OUT, TRAIN
from data_prep.synthconl.release.duplicates import Duplicates
from data_prep.synthconl.release.rows import Row
from data_prep.tools.stats.charts import Bars, Histogram, Section, share

_MOST_NAMES = 20
# Upper ends of the bins of lengths in characters.
_LENGTHS = (100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600)
_TEXTS = {"func_documentation_string": "text", "func1_CSN": "code", "func2": "translation"}


class ReleaseStatistics:
    """Counts of the rows that are written."""

    def __init__(self, dropped: Counter[str]):
        self.dropped = dropped
        self.counts: dict[str, Counter[str]] = {
            name: Counter() for name in ("split", "language1_CSN", "language2", "license", "model", "pair")
        }
        self.lengths: dict[str, Counter[int]] = {name: Counter() for name in _TEXTS}
        self.repositories: dict[str, set[str]] = {}
        self._groups: dict[str, set[int | str]] = {TRAIN: set(), HELD_OUT: set()}

    def add(self, row: Row, group: int | str | None) -> None:
        """Count one row, with its near-duplicate group."""
        for name in ("split", "language1_CSN", "language2", "license", "model"):
            self.counts[name][row[name] or "unknown"] += 1
        self.counts["pair"][f"{row['language1_CSN']} -> {row['language2']}"] += 1
        self.repositories.setdefault(row["split"], set()).add(row["repository_name"])
        for name, counter in self.lengths.items():
            counter[next((end for end in _LENGTHS if len(row[name]) < end), _LENGTHS[-1])] += 1
        if group is not None:
            self._groups.setdefault(row["split"], set()).add(group)

    @property
    def rows(self) -> int:
        """Rows that are written."""
        return sum(self.counts["split"].values())

    def to_plain(self, duplicates: Duplicates | None) -> dict[str, Any]:
        """The counts for JSON; `in_both_splits` is what must be 0."""
        shared = self.repositories.get(TRAIN, set()) & self.repositories.get(HELD_OUT, set()) - {""}
        return {
            "rows": self.rows,
            "dropped": dict(sorted(self.dropped.items())),
            "repositories": {split: len(names) for split, names in sorted(self.repositories.items())},
            "in_both_splits": {
                "repositories": len(shared),
                "near_duplicate_groups": None if duplicates is None else len(self._groups[TRAIN] & self._groups[HELD_OUT]),
            },
            **{name: dict(sorted(counter.items())) for name, counter in self.counts.items()},
            "characters_below": {
                _TEXTS[name]: {str(end): counter[end] for end in _LENGTHS} for name, counter in self.lengths.items()
            },
        }


def release_sections(statistics: ReleaseStatistics) -> list[Section]:
    """The sections of the page."""
    counts, dropped = statistics.counts, statistics.dropped
    total = statistics.rows + sum(dropped.values())
    kept = ("kept", statistics.rows)
    return [
        _names("Rows by split", "Repositories are whole in one split.", "split", counts["split"]),
        _names("Seeds and rows", "What became of each seed.", "outcome", Counter(dict([kept, *dropped.items()])), total),
        _names("Rows by source language", "The language of func1_CSN.", "language", counts["language1_CSN"]),
        _names("Rows by target language", "The language of func2.", "language", counts["language2"]),
        _names("Rows by pair of languages", "Source -> target, the most frequent.", "pair", counts["pair"]),
        _names("Rows by licence", "Of the source's file.", "licence", counts["license"]),
        _names("Rows by model", "As the server names it.", "model", counts["model"]),
        *(_lengths(name, counter) for name, counter in statistics.lengths.items()),
    ]


def _names(title: str, text: str, what: str, counter: Counter[str], total: int = 0) -> Section:
    shown = counter.most_common(_MOST_NAMES)
    whole = total or sum(counter.values())
    rows = tuple((name, f"{number:,}", share(number, whole)) for name, number in shown)
    return Section(
        title, text, (what, "rows", "share"), rows, Bars("rows", tuple((name, float(number)) for name, number in shown))
    )


def _lengths(name: str, counter: Counter[int]) -> Section:
    counts = tuple(counter[end] for end in _LENGTHS)
    rows = tuple((f"below {end:,}", f"{number:,}") for end, number in zip(_LENGTHS, counts, strict=True))
    edges = tuple(float(place) for place in range(len(_LENGTHS) + 1))
    axis = "bins of characters, each twice as wide as the one before"
    title = f"Length of {name}"
    return Section(
        title, f"Characters of the {_TEXTS[name]}.", ("characters", "rows"), rows, Histogram(axis, "rows", edges, counts)
    )
