"""Rewrites one shard without some of its snippets: every row keeps its number and is assembled from the remaining snippets.

Letters: R rows, S snippets (lines of the lineage table), T slots of a row.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.execution.task_files import remove_leftovers
from data_prep.shards.lineage import LineageTable, codes, is_of_one
from data_prep.shards.rows import RecordBlock, key_of, read_blocks, read_index, shard_number
from data_prep.tools.removal.removal_list import RemovalList
from mose.array_types import INT64_ARRAY
from mose.dataset.manifest import ShardEntry
from mose.dataset.packed_sequence import TOKENS, SpecialTokens, assemble
from mose.dataset.row_index import index_bytes, make_index
from mose.dataset.shard_format import BLOCK, RecordLayout, RowLabels
from mose.errors import MoseError
from mose.files.atomic_file import atomic_write, file_sha256

TAR_END = b"\0" * (2 * BLOCK)


@dataclass(frozen=True)
class ShardLines:
    """The lines of one lineage table as numbers [S], ascending by row."""

    row_S: INT64_ARRAY
    num_tokens_S: INT64_ARRAY
    repository_S: INT64_ARRAY
    """A code per repository."""
    file_S: INT64_ARRAY
    """A code per file, that is repository and path."""

    def where(self, chosen_S: NDArray[np.bool_]) -> "ShardLines":
        """The selected lines."""
        return ShardLines(*(column[chosen_S] for column in (self.row_S, self.num_tokens_S, self.repository_S, self.file_S)))


def read_lines(table: LineageTable) -> ShardLines:
    """The columns of a table that describe the snippets of its rows."""
    columns = table.columns(["row", "num_tokens", "repository", "path"])
    row_S, num_tokens_S = (columns[name].to_numpy().astype(np.int64) for name in ("row", "num_tokens"))
    repository_S, path_S = (codes(columns[name])[0] for name in ("repository", "path"))
    return ShardLines(row_S, num_tokens_S, repository_S, repository_S * (path_S.max(initial=0) + 1) + path_S)


@dataclass(frozen=True)
class RowPlan:
    """The rows of a shard that lose snippets: their snippets, which of these stay, and the new labels."""

    rows: INT64_ARRAY
    """Row numbers [R], ascending."""
    first: INT64_ARRAY
    """Row r has the entries [first[r], first[r + 1]) of `lengths` and `kept`, [R + 1]."""
    lengths: INT64_ARRAY
    """Tokens of each snippet, [S]."""
    kept: NDArray[np.bool_]
    labels: RowLabels


def plan_rows(lines: ShardLines, goes_S: NDArray[np.bool_], rows: int) -> RowPlan:
    """The plan for the rows that hold a line to remove."""
    changed_R = np.unique(lines.row_S[goes_S])
    concerned_S = np.isin(lines.row_S, changed_R)
    mine, kept = lines.where(concerned_S), ~goes_S[concerned_S]
    left = mine.where(kept)
    counts = np.bincount(left.row_S, minlength=rows)[changed_R]
    tokens = np.bincount(left.row_S, left.num_tokens_S, minlength=rows)[changed_R].astype(np.int64)
    num_tokens = np.where(counts > 0, tokens + counts + 1, 0)
    mixed = (counts > 0) & ~is_of_one(left.row_S, left.repository_S, rows)[changed_R]
    first = np.append(np.searchsorted(mine.row_S, changed_R), len(mine.row_S))
    return RowPlan(changed_R, first, mine.num_tokens_S, kept, RowLabels(mixed.astype(np.int64), num_tokens, counts))


@dataclass(frozen=True)
class ShardRewriter:
    """Rewrites one shard, its index and its lineage table; can be repeated after a kill."""

    dataset: Path
    entry: ShardEntry
    layout: RecordLayout
    special: SpecialTokens
    removal: RemovalList

    @contextlib.contextmanager
    def rewritten(self) -> Iterator[tuple[ShardEntry, dict[str, int]]]:
        """Replace shard and index, yield the new entry and the counts of its rows, and replace the lineage table after the block.

        The lineage table goes last, because it alone holds what to remove: until it is replaced, all steps can be repeated.

        Raises:
            MoseError: a row does not match its lineage; nothing more is replaced.
        """
        entry = self.entry
        paths = [entry.shard_in(self.dataset), entry.index_in(self.dataset), entry.lineage_in(self.dataset)]
        remove_leftovers(self.dataset, shard_number(entry))
        with LineageTable(paths[2]) as table:
            goes_S = self._goes(table)
            lines = read_lines(table)
            plan = plan_rows(lines, goes_S, entry.rows)
            with atomic_write(paths[2]) as file:
                self._write_lineage(file, table, goes_S, lines.row_S)
                file.flush()
                lineage_sha256 = file_sha256(Path(file.name))
                index_R, sha256 = self._replace_shard(plan)
                with atomic_write(paths[1]) as index_file:
                    index_file.write(index_bytes(index_R))
                new = replace(
                    entry,
                    tokens=int(index_R["num_tokens"].sum()),
                    sha256=sha256,
                    index_sha256=file_sha256(paths[1]),
                    lineage_sha256=lineage_sha256,
                )
                yield new, row_counts(index_R, lines.where(~goes_S))

    def _goes(self, table: LineageTable) -> NDArray[np.bool_]:
        marks = [self.removal.marks(group).to_numpy() for group in table.groups(self.removal.columns)]
        return np.concatenate([np.zeros(0, dtype=bool), *marks])

    def _write_lineage(self, file: IO[bytes], table: LineageTable, goes_S: NDArray[np.bool_], row_S: INT64_ARRAY) -> None:
        """Write the lines that stay, in the same row groups, with `snippet` renumbered in each row."""
        stays_S = ~goes_S
        before_S: INT64_ARRAY = np.cumsum(stays_S) - stays_S
        snippet_S: NDArray[np.int32] = (before_S - before_S[np.searchsorted(row_S, row_S)]).astype(np.int32)
        start = 0
        with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
            for group in table.groups():
                here = slice(start, start + group.num_rows)
                start += group.num_rows
                numbered = group.set_column(group.schema.get_field_index("snippet"), "snippet", pa.array(snippet_S[here]))
                writer.write_table(numbered.filter(pa.array(stays_S[here])).cast(table.schema))

    def _replace_shard(self, plan: RowPlan) -> tuple[NDArray[np.void], str]:
        """Copy the shard with the planned rows changed; returns the index [R] of its rows and the file's SHA-256."""
        path, digest = self.entry.shard_in(self.dataset), hashlib.sha256()
        index_R = read_index(self.entry.index_in(self.dataset), self.entry.rows)
        with atomic_write(path) as file:
            for block in read_blocks(path, self.layout, self.entry.rows):
                records = self._changed(block, plan, index_R)
                digest.update(records)
                file.write(records)
            digest.update(TAR_END)
            file.write(TAR_END)
        return index_R, digest.hexdigest()

    def _changed(self, block: RecordBlock, plan: RowPlan, index_R: NDArray[np.void]) -> bytes:
        """The bytes of a block with its planned rows changed; the same rows of the index are changed in place."""
        start, end = np.searchsorted(plan.rows, [block.first_row, block.first_row + len(block.records)])
        if start == end:
            return block.records.tobytes()
        records = block.records.copy()
        for number in range(start, end):
            place = int(plan.rows[number])
            row_T = self._left_of(block.tokens_RT[place - block.first_row], place, plan, number)
            labels = [int(column[number]) for column in (plan.labels.mixed, plan.labels.num_tokens, plan.labels.num_snippets)]
            record = self.layout.record(key_of(self.entry, place), row_T, *labels)
            records[place - block.first_row] = np.frombuffer(record, np.uint8)
            index_R[place] = make_index(row_T[None], RowLabels(*(np.array([label]) for label in labels)))[0]
        return records.tobytes()

    def _left_of(self, row_T: TOKENS, place: int, plan: RowPlan, number: int) -> TOKENS:
        """The row without its removed snippets; a row that an interrupted run rewrote already is left as it is."""
        here = slice(plan.first[number], plan.first[number + 1])
        lengths, kept = plan.lengths[here], plan.kept[here]
        snippets = split_row(row_T, lengths, self.special)
        if snippets is None:
            snippets = split_row(row_T, lengths[kept], self.special)
            kept = np.ones(int(kept.sum()), dtype=bool)
        if snippets is None:
            path = self.dataset / self.entry.path
            raise MoseError(f"{path}: row {place} does not match its lineage; expected a data set that passes `mose-data verify`")
        left = [snippet for snippet, stays in zip(snippets, kept, strict=True) if stays]
        if not left:
            return np.full_like(row_T, self.special.pad)
        return assemble(left, self.special, len(row_T), row_T.dtype)


def split_row(row_T: TOKENS, lengths: INT64_ARRAY, special: SpecialTokens) -> list[TOKENS] | None:
    """The snippets of a row, None if it does not consist of snippets of these lengths."""
    if not len(lengths):
        return [] if (row_T == special.pad).all() else None
    ends = len(row_T) - 1 - np.append(np.cumsum((lengths + 1)[::-1])[::-1][1:], 0)
    starts = ends - lengths
    separators = np.flatnonzero(row_T == special.sep)
    if not np.array_equal(separators, starts - 1) or (row_T[: separators[0]] != special.pad).any():
        return None
    return [row_T[start:end] for start, end in zip(starts, ends, strict=True)]


def row_counts(index_R: NDArray[np.void], lines: ShardLines) -> dict[str, int]:
    """The row counts of the completion marker, and `kept_text_tokens`, the file tokens that remain in rows."""
    return {
        "rows": len(index_R),
        "mixed_rows": int(index_R["mixed"].sum()),
        "single_snippet_rows": int((index_R["num_snippets"] == 1).sum()),
        "single_file_rows": int(is_of_one(lines.row_S, lines.file_S, len(index_R)).sum()),
        "snippets": len(lines.row_S),
        "tokens": int(index_R["num_tokens"].sum()),
        "kept_text_tokens": int(lines.num_tokens_S.sum()),
    }
