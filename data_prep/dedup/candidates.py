"""The second phase: documents that share a band become candidate pairs. A task takes a range of all keys, whoever wrote them."""

from collections.abc import Callable

import numpy as np

from data_prep.dedup.minhash.banding import candidate_pairs, oriented
from data_prep.dedup.phase import BANDS, SIGNATURES, Run
from data_prep.dedup.storage.segment_file import SegmentWriter, ranges, read_sorted
from data_prep.pipeline.task_marker import TaskProgress
from mose.files.atomic_file import atomic_write
from mose.seeding import UINT64_ARRAY

_KEYS = 1 << 64
_PAIR_BYTES = 16


def write_candidates(run: Run, task: int, observe: Callable[[TaskProgress], None]) -> None:
    """Run one task: every pair of documents that share a key of its range, each once per range that is read at a time.

    Raises:
        MoseError: signatures are missing or damaged.
    """
    config = run.config
    files, numbering = run.pairs(SIGNATURES), run.numbering()
    low, high = (_KEYS * bound // config.num_tasks for bound in (task, task + 1))
    # Up to max_documents_per_key / 2 pairs per key, in about four copies.
    max_keys = max(config.memory_bytes // (2 * config.max_documents_per_key * _PAIR_BYTES), 1)
    counts = {"keys": 0, "pairs": 0, "large_keys": 0}
    path = run.part(BANDS, task, "pairs")
    with atomic_write(path) as file:
        writer = SegmentWriter(file)
        for first, last in ranges(files, low, high, max_keys):
            keys, documents = read_sorted(files, first, last)
            one, two, large = candidate_pairs(keys, documents, config.max_documents_per_key)
            row_one, row_two = numbering.row_of(one), numbering.row_of(two)
            # An evaluation text is compared with rows, not with other evaluation texts.
            is_wanted = (row_one != row_two) & ~(numbering.is_evaluation(row_one) & numbering.is_evaluation(row_two))
            one, two = distinct_pairs(*oriented(one[is_wanted], two[is_wanted]))
            writer.add(one, two)
            counts["keys"] += len(keys)
            counts["pairs"] += len(one)
            counts["large_keys"] += large
            observe(TaskProgress(rows=counts["keys"]))
    run.finish(BANDS, task, counts, [path], writer.lengths)


def distinct_pairs(first: UINT64_ARRAY, second: UINT64_ARRAY) -> tuple[UINT64_ARRAY, UINT64_ARRAY]:
    """The pairs in ascending order, each once."""
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    is_new = np.append(True, (first[1:] != first[:-1]) | (second[1:] != second[:-1]))[: len(first)]
    return first[is_new], second[is_new]
