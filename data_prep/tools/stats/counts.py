"""Counts what the rows of a data set consist of, from indexes and lineage tables, with one shard in memory at a time.

Letters: R rows, S snippets, F files, T slots of a row.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.console import show_progress
from data_prep.shards.lineage import LineageTable, codes, is_of_one
from data_prep.shards.rows import read_index
from mose.array_types import INT64_ARRAY
from mose.dataset.manifest import SPLITS, Manifest, ShardEntry
from mose.seeding import generator

# Rows of more snippets than this are counted together.
MOST_SNIPPETS = 32
# Only the largest repositories so far are kept, to bound the memory.
_LARGEST = 50


@dataclass(frozen=True)
class ShardFill:
    """The fill of the rows of one task's shard."""

    path: str
    rows: int
    fill: float


@dataclass
class SplitStatistics:
    """Counts of one split; histograms have one bin per value."""

    row_tokens: INT64_ARRAY
    """Rows by number of tokens, [T + 1]."""
    snippet_tokens: INT64_ARRAY
    """Snippets by number of tokens, [T + 1]."""
    snippets_a_row: INT64_ARRAY = field(default_factory=lambda: np.zeros(MOST_SNIPPETS + 1, np.int64))
    """Rows by number of snippets; the last entry includes all larger numbers."""
    mixed_rows: int = 0
    single_file_rows: int = 0
    """Rows whose snippets all come from one file, rows of one snippet included."""
    single_snippet_tokens: int = 0
    """Filled slots of rows of one snippet."""
    files: int = 0
    lone_file_tokens: int = 0
    """Slots that the files would fill with one file per row, truncated to the row: `<sep>` file `<cls>`."""
    repositories: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    """Text tokens in rows by language."""
    licences: Counter[str] = field(default_factory=Counter)
    largest_repositories: Counter[str] = field(default_factory=Counter)
    """Text tokens in rows of the largest repositories."""
    fills: list[ShardFill] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows, emptied ones included."""
        return int(self.row_tokens.sum())

    @property
    def emptied_rows(self) -> int:
        """Rows without tokens, because all their files were removed."""
        return int(self.row_tokens[0])

    @property
    def tokens(self) -> int:
        """Filled slots."""
        return int(self.row_tokens @ np.arange(len(self.row_tokens)))

    @property
    def text_tokens(self) -> int:
        """Tokens of files in the rows: filled slots without `<sep>` and `<cls>`."""
        return sum(self.languages.values())

    @property
    def snippets(self) -> int:
        """Snippets of all rows."""
        return int(self.snippet_tokens.sum())

    @property
    def packed_rows(self) -> int:
        """Rows of two snippets or more."""
        return int(self.snippets_a_row[2:].sum())


@dataclass(frozen=True)
class DatasetStatistics:
    """The statistics of every split, and the number of shards that they were counted from."""

    splits: dict[str, SplitStatistics]
    sequence_length: int
    counted_shards: int
    shards: int


def count_statistics(dataset: Path, manifest: Manifest, share: float = 1.0, seed: int = 0) -> DatasetStatistics:
    """Count every shard, or a random share of each split's shards drawn with `seed` (at least one).

    Raises:
        MoseError: an index or a lineage table is missing or damaged.
    """
    chosen = [
        (split, entries[i])
        for split, entries in manifest.splits.items()
        for i in sorted(generator(seed, "stats", split).permutation(len(entries))[: max(1, round(share * len(entries)))].tolist())
    ]
    size = manifest.sequence_length + 1
    names = sorted(manifest.splits, key=lambda split: (*SPLITS, split).index(split))
    splits = {split: SplitStatistics(np.zeros(size, np.int64), np.zeros(size, np.int64)) for split in names}
    with show_progress("counting", sum(entry.rows for _, entry in chosen), "rows") as advance:
        for split, entry in chosen:
            _count_shard(dataset, entry, splits[split])
            advance(entry.rows)
    return DatasetStatistics(splits, manifest.sequence_length, len(chosen), sum(map(len, manifest.splits.values())))


def _count_shard(dataset: Path, entry: ShardEntry, statistics: SplitStatistics) -> None:
    index_R = read_index(entry.index_in(dataset), entry.rows)
    num_tokens_R = index_R["num_tokens"].astype(np.int64)
    num_snippets_R = np.minimum(index_R["num_snippets"].astype(np.int64), MOST_SNIPPETS)
    statistics.row_tokens += np.bincount(num_tokens_R, minlength=len(statistics.row_tokens))
    statistics.snippets_a_row += np.bincount(num_snippets_R, minlength=MOST_SNIPPETS + 1)
    statistics.mixed_rows += int(index_R["mixed"].sum())
    statistics.single_snippet_tokens += int(num_tokens_R[num_snippets_R == 1].sum())
    slots = len(statistics.row_tokens) - 1
    statistics.fills.append(ShardFill(entry.path, entry.rows, float(num_tokens_R.mean()) / slots))
    _count_lineage(entry.lineage_in(dataset), entry, statistics)


def _count_lineage(path: Path, entry: ShardEntry, statistics: SplitStatistics) -> None:
    with LineageTable(path) as table:
        columns = table.columns(["row", "repository", "path", "licence", "language", "num_tokens"])
    tokens_S = columns["num_tokens"].to_numpy().astype(np.int64)
    slots = len(statistics.row_tokens) - 1
    statistics.snippet_tokens += np.bincount(tokens_S, minlength=slots + 1)
    repository_S, repositories = codes(columns["repository"])
    path_S, _ = codes(columns["path"])
    file_S = repository_S * (path_S.max(initial=0) + 1) + path_S
    statistics.single_file_rows += int(is_of_one(columns["row"].to_numpy(), file_S, entry.rows).sum())
    _, file_of_S = np.unique(file_S, return_inverse=True)
    tokens_F = np.bincount(file_of_S, tokens_S).astype(np.int64)
    statistics.files += len(tokens_F)
    statistics.lone_file_tokens += int(np.minimum(tokens_F + 2, slots).sum())
    totals = _totals(repository_S, repositories, tokens_S)
    statistics.repositories += len(totals)
    statistics.largest_repositories = Counter(dict((statistics.largest_repositories + totals).most_common(_LARGEST)))
    statistics.languages.update(_totals(*codes(columns["language"]), tokens_S))
    statistics.licences.update(_totals(*codes(columns["licence"]), tokens_S))


def _totals(code_S: INT64_ARRAY, names: Sequence[str], tokens_S: INT64_ARRAY) -> Counter[str]:
    """Tokens by name, without names that have none."""
    totals = np.bincount(code_S, tokens_S, minlength=len(names)).astype(np.int64).tolist()
    return Counter({name: total for name, total in zip(names, totals, strict=True) if total})
