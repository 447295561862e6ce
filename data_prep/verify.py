"""`mose-data verify`: every shard and lineage table re-read against the manifest, row by row.

Letters: R rows of a block, T slots of a row, S snippets of a block.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.pieces import INT64_ARRAY
from data_prep.progress import show_progress
from data_prep.split_writer import LINEAGE_SCHEMA
from mose.atomic_file import file_sha256
from mose.errors import MoseError
from mose.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest
from mose.packed_sequence import TOKENS, SpecialTokens, check_row
from mose.shard_format import RowLabels, ShardReader
from mose.tokenizer import Tokenizer, load_tokenizer

_BLOCK_ROWS = 1024


def verify_dataset(dataset: Path) -> list[str]:
    """The first thing wrong with each shard, and with the data set as a whole; one line each, empty if all is well.

    Raises:
        MoseError: there is no manifest or no tokenizer to check with.
    """
    manifest = read_manifest(dataset)
    tokenizer = load_tokenizer(dataset)
    problems = _tokenizer_problems(manifest, tokenizer)
    repositories: dict[str, set[str]] = {}
    total = sum(manifest.rows(split) for split in manifest.splits)
    with show_progress("verifying", total, "rows") as advance:
        for split, entries in manifest.splits.items():
            repositories[split] = set()
            for entry in entries:
                try:
                    repositories[split] |= _check_shard(dataset, entry, manifest, tokenizer.special, advance)
                except MoseError as error:
                    problems.append(str(error))
    return problems + _overlap(dataset, repositories) + _total_problems(dataset, manifest)


def _tokenizer_problems(manifest: Manifest, tokenizer: Tokenizer) -> list[str]:
    if tokenizer.fingerprint() == manifest.tokenizer_fingerprint:
        return []
    found, expected = tokenizer.fingerprint(), manifest.tokenizer_fingerprint
    return [f"{tokenizer.path}: fingerprint is {found}, {MANIFEST_NAME} says {expected}: not the tokenizer of these shards"]


def _overlap(dataset: Path, repositories: dict[str, set[str]]) -> list[str]:
    seen: dict[str, str] = {}
    problems = []
    for split, names in repositories.items():
        for name in sorted(names):
            if name in seen:
                problems.append(f"{dataset}: repository {name} is in {seen[name]} and in {split}; expected one split only")
            seen[name] = split
    return problems[:1]


def _total_problems(dataset: Path, manifest: Manifest) -> list[str]:
    """Counts of the statistics that the shard entries do not add up to."""
    problems = []
    for split, counts in manifest.statistics.get("splits", {}).items():
        for name, found in (("rows", manifest.rows(split)), ("tokens", manifest.tokens(split))):
            if counts[name] != found:
                path = dataset / MANIFEST_NAME
                problems.append(f"{path}: statistics.splits.{split}.{name} is {counts[name]}, its shards hold {found}")
    return problems


def _check_shard(
    dataset: Path, entry: ShardEntry, manifest: Manifest, special: SpecialTokens, advance: Callable[[int], None]
) -> set[str]:
    """Check one shard and its lineage; returns the names of its repositories.

    Raises:
        MoseError: what is wrong, with the file and the row.
    """
    shard, lineage = dataset / entry.path, dataset / entry.lineage_path
    reader = ShardReader(shard, manifest.layout(), entry.rows)
    try:
        _check_sum(shard, entry.sha256)
        _check_sum(lineage, entry.lineage_sha256)
        table = _Lineage(lineage, entry.rows)
        tokens = 0
        for start in range(0, entry.rows, _BLOCK_ROWS):
            rows = np.arange(start, min(start + _BLOCK_ROWS, entry.rows))
            labels = reader.labels(rows)
            rows_RT = reader.tokens(rows)
            _check_tokens(shard, start, rows_RT, labels, special, manifest.vocabulary_size)
            alternating = manifest.statistics.get("mode") != "faithful"
            _check_lineage(table, start, rows_RT, labels, special, alternating=alternating)
            tokens += int(labels.num_tokens.sum())
            advance(len(rows))
    finally:
        reader.close()
    if tokens != entry.tokens:
        raise MoseError(f"{shard}: holds {tokens} tokens, {MANIFEST_NAME} says {entry.tokens}")
    return table.repositories


def _check_sum(path: Path, expected: str) -> None:
    if not path.is_file():
        raise MoseError(f"{path}: no such file, but {MANIFEST_NAME} lists it")
    found = file_sha256(path)
    if found != expected:
        raise MoseError(f"{path}: SHA-256 is {found[:16]}..., {MANIFEST_NAME} says {expected[:16]}...: damaged or replaced")


def _first(wrong_R: NDArray[np.bool_]) -> int | None:
    places = np.flatnonzero(wrong_R)
    return int(places[0]) if len(places) else None


def _check_tokens(path: Path, start: int, rows_RT: TOKENS, labels: RowLabels, special: SpecialTokens, vocabulary: int) -> None:
    """Token ids, padding, `<sep>` and `<cls>` of a block of rows, the first of which is row `start` of the shard."""
    if rows_RT.max() >= vocabulary:
        row = int(rows_RT.max(axis=1).argmax())
        raise MoseError(f"{path}: row {start + row}: token {rows_RT[row].max()}, the vocabulary has {vocabulary}")
    length = rows_RT.shape[1]
    is_real = np.arange(length) >= (length - labels.num_tokens)[:, None]
    is_empty_R = labels.num_tokens == 0
    first_token_R = rows_RT[np.arange(len(rows_RT)), np.clip(length - labels.num_tokens, 0, length - 1)]
    wrong_R = (first_token_R != special.sep) | (rows_RT[:, -1] != special.cls) | (labels.num_tokens < 3)
    wrong_R |= (rows_RT == special.cls).sum(axis=1) != 1
    wrong_R &= ~is_empty_R
    wrong_R |= ((rows_RT == special.pad) == is_real).any(axis=1) | (rows_RT == special.mask).any(axis=1)
    wrong_R |= ((rows_RT == special.sep).sum(axis=1) != labels.num_snippets) | (labels.num_tokens > length)
    row_or_none = _first(wrong_R)
    if row_or_none is not None:
        row = row_or_none
        said = check_row(rows_RT[row], int(labels.num_tokens[row]), int(labels.num_snippets[row]), special)
        raise MoseError(f"{path}: row {start + row}: {said or 'a <pad>, <cls> or <mask> stands among the text'}")


class _Lineage:
    """A lineage table with its rows' bounds: row r is lines [first[r], first[r + 1])."""

    def __init__(self, path: Path, rows: int):
        self.path = path
        table = _read_lineage(path)
        lines = table["row"].to_numpy()
        self.first = np.searchsorted(lines, np.arange(rows + 1))
        if (np.diff(lines) < 0).any() or (len(lines) and (lines[0] < 0 or lines[-1] >= rows)):
            raise MoseError(f"{path}: row: is not ascending from 0 to {rows - 1}")
        self.lengths: INT64_ARRAY = table["num_tokens"].to_numpy().astype(np.int64)
        encoded = pc.dictionary_encode(table["repository"]).combine_chunks()
        self.repository_ids: INT64_ARRAY = encoded.indices.to_numpy().astype(np.int64)
        self.repositories: set[str] = set(encoded.dictionary.to_pylist())


def _read_lineage(path: Path) -> Any:
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise MoseError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None
    if table.schema.names != LINEAGE_SCHEMA.names:
        raise MoseError(f"{path}: columns are {table.schema.names}, expected {LINEAGE_SCHEMA.names}")
    return table


def _check_lineage(
    table: _Lineage, start: int, rows_RT: TOKENS, labels: RowLabels, special: SpecialTokens, *, alternating: bool
) -> None:
    """Snippets of a block of rows against their lines: as many, as long, of one repository or of two, as the label says."""
    first_R = table.first[start : start + len(rows_RT) + 1]
    counts_R = np.diff(first_R)
    _fail(table.path, start, counts_R != labels.num_snippets, "has another number of snippets than its shard says")
    lines_S = slice(int(first_R[0]), int(first_R[-1]))
    row_of_S, slot_S = np.nonzero(rows_RT == special.sep)
    ends_S = np.where(np.append(row_of_S[1:], -1) == row_of_S, np.append(slot_S[1:], 0), rows_RT.shape[1] - 1)
    differs_R = _any_in_row(ends_S - slot_S - 1 != table.lengths[lines_S], row_of_S, len(rows_RT))
    _fail(table.path, start, differs_R, "has a snippet of another length than its shard")
    ids_S = table.repository_ids[lines_S]
    place_S = np.arange(len(ids_S)) - (first_R[:-1] - first_R[0])[row_of_S]
    if not len(ids_S):
        return
    ids_first_R = ids_S[np.minimum(first_R[:-1] - first_R[0], len(ids_S) - 1)]
    other_R = _any_in_row(ids_S != ids_first_R[row_of_S], row_of_S, len(rows_RT))
    _fail(table.path, start, other_R != (labels.mixed == 1), "has a label `mixed` that its repositories do not bear out")
    _fail(table.path, start, _more_than_two(ids_S, ids_first_R, row_of_S), "holds more than two repositories")
    if alternating:
        is_late_S = place_S >= 2
        breaks_S = is_late_S & (ids_S != np.roll(ids_S, 2))
        _fail(table.path, start, _any_in_row(breaks_S, row_of_S, len(rows_RT)), "does not alternate its two repositories")


def _more_than_two(ids_S: INT64_ARRAY, ids_first_R: INT64_ARRAY, row_of_S: INT64_ARRAY) -> NDArray[np.bool_]:
    """Rows whose snippets that are not of the first repository are of several others."""
    is_other_S = ids_S != ids_first_R[row_of_S]
    second_R = ids_first_R.copy()
    second_R[row_of_S[is_other_S]] = ids_S[is_other_S]
    return _any_in_row(is_other_S & (ids_S != second_R[row_of_S]), row_of_S, len(ids_first_R))


def _any_in_row(wrong_S: NDArray[np.bool_], row_of_S: INT64_ARRAY, rows: int) -> NDArray[np.bool_]:
    found_R = np.zeros(rows, dtype=bool)
    found_R[row_of_S[wrong_S]] = True
    return found_R


def _fail(path: Path, start: int, wrong_R: NDArray[np.bool_], what: str) -> None:
    row = _first(wrong_R)
    if row is not None:
        raise MoseError(f"{path}: row {start + row} {what}")
