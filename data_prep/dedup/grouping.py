"""The fourth phase: verified pairs to groups of rows, and which rows of a group stay.

It is one task, because a chain of near-duplicates may run through the whole input; it reads numbers only, in chunks.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup.minhash.groups import joined, kept_members, ranks_of, representatives
from data_prep.dedup.phase import GROUPS, SIGNATURES, VERIFY, Run
from data_prep.dedup.storage.documents import TASK_BITS, Numbering
from data_prep.dedup.storage.segment_file import SegmentFile, SegmentWriter, ranges, read_sorted
from data_prep.pipeline.task_marker import TaskProgress
from mose.array_types import INT64_ARRAY
from mose.files.atomic_file import atomic_write
from mose.seeding import UINT64_ARRAY

GROUP_DTYPE = np.dtype([("row", "<u8"), ("group", "<u8"), ("kept", "<u8"), ("is_contaminated", "?")])
"""A row, the first row of its group, and the row that stands for it: a kept one (itself, if it stays), or the evaluation text."""
# An edge takes 16 bytes, and its sort and conversions about eight copies.
_BYTES_PER_EDGE = 128
_NO_TEXT = np.iinfo(np.int64).max


def write_groups(run: Run, observe: Callable[[TaskProgress], None]) -> None:
    """Run the one task of the phase: the group of every row that has a near-duplicate, and which rows are kept.

    Raises:
        MoseError: verified pairs or signatures are missing or damaged.
    """
    numbering, config = run.numbering(), run.config
    rows = _listed_rows(run, numbering)
    texts = np.full(len(rows), _NO_TEXT)
    groups = np.arange(len(rows))
    ranks = ranks_of(_characters(run, numbering, rows), config.keep)
    edges = run.part(GROUPS, 0, "edges")
    with atomic_write(edges) as file:
        writer = SegmentWriter(file)
        for first, second in _edges(run, numbering):
            is_text = numbering.is_evaluation(second)
            # The first evaluation text, in an order that does not depend on the number of tasks.
            np.minimum.at(texts, np.searchsorted(rows, first[is_text]), numbering.evaluation_number(second[is_text]))
            one, two = (np.searchsorted(rows, side[~is_text]) for side in (first, second))
            groups = joined(groups, one, two)
            one, two = ranks[one], ranks[two]
            writer.add(np.maximum(one, two).astype(np.uint64), np.minimum(one, two).astype(np.uint64))
    observe(TaskProgress(rows=len(rows)))
    is_clean = texts == _NO_TEXT
    if config.chains == "remove":
        kept = kept_members(groups, is_clean, ranks)
    else:
        kept = _kept_by_similarity(SegmentFile(edges, writer.lengths), is_clean, ranks, _max_edges(run))
    edges.unlink()
    table = np.zeros(len(rows), GROUP_DTYPE)
    table["row"], table["group"], table["is_contaminated"] = rows, rows[groups], ~is_clean
    table["kept"][is_clean] = rows[kept[is_clean]]
    table["kept"][~is_clean] = numbering.evaluation_row(texts[~is_clean])
    path = run.part(GROUPS, 0, "npy")
    with atomic_write(path) as file:
        np.save(file, table, allow_pickle=False)
    counts = {"rows": len(rows), "groups": len(np.unique(groups)), "largest": int(np.bincount(groups).max(initial=0))}
    run.finish(GROUPS, 0, counts, [path], [])


def _listed_rows(run: Run, numbering: Numbering) -> UINT64_ARRAY:
    """The input rows that have a near-duplicate, ascending; takes a byte per row of the input."""
    is_listed = np.zeros(int(numbering.rows_T.sum()), np.bool_)
    for first, second in _edges(run, numbering):
        for side in (first, second[~numbering.is_evaluation(second)]):
            is_listed[numbering.input_number(side)] = True
    return numbering.rows_of(np.flatnonzero(is_listed))


def _edges(run: Run, numbering: Numbering) -> Iterator[tuple[UINT64_ARRAY, UINT64_ARRAY]]:
    """The verified pairs as rows, in chunks; only the second one may be an evaluation text."""
    for file, signatures in zip(run.pairs(VERIFY), run.markers(SIGNATURES), strict=True):
        low = signatures.task << TASK_BITS
        documents = (signatures.counts["rows"] + signatures.counts["evaluation_texts"]) * run.config.num_columns
        for bounds in ranges([file], low, low + max(documents, 1), _max_edges(run)):
            first, second = (numbering.row_of(side) for side in file.read(*bounds))
            is_swapped = numbering.is_evaluation(first)
            yield np.where(is_swapped, second, first), np.where(is_swapped, first, second)


def _max_edges(run: Run) -> int:
    return run.config.memory_bytes // (2 * _BYTES_PER_EDGE)


def _characters(run: Run, numbering: Numbering, rows: UINT64_ARRAY) -> INT64_ARRAY:
    """Characters of each row, of all its columns."""
    sizes = np.zeros(len(rows), np.int64)
    if run.config.keep == "longest":
        texts = run.texts()
        for column in range(run.config.num_columns):
            sizes += texts.field(numbering.document_of(rows, column), "characters").astype(np.int64)
    return sizes


def _kept_by_similarity(edges: SegmentFile, may_be_kept: NDArray[np.bool_], ranks: INT64_ARRAY, max_edges: int) -> INT64_ARRAY:
    """The place of the kept row that stands for each row, its own if it stays, -1 if it may not."""
    places = np.argsort(ranks)
    chunks = (read_sorted([edges], *bounds) for bounds in ranges([edges], 0, max(len(ranks), 1), max_edges))
    standing = representatives(chunks, may_be_kept[places])
    kept = np.full(len(ranks), -1)
    kept[places] = np.where(standing >= 0, places[standing], -1)
    return kept
