"""The third phase: the exact Jaccard similarity of candidate pairs. A task takes the pairs whose first document it wrote.

LSH alone is not enough: of natural code, about half of its pairs are below the threshold.
"""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from data_prep.dedup.candidates import distinct_pairs
from data_prep.dedup.minhash.groups import UnionFind
from data_prep.dedup.minhash.shingles import jaccard, shingle_set
from data_prep.dedup.phase import BANDS, SIGNATURES, VERIFY, Run
from data_prep.dedup.storage.documents import TASK_BITS, Numbering
from data_prep.dedup.storage.segment_file import SegmentWriter, ranges, read_sorted
from data_prep.dedup.storage.text_store import TextStores
from data_prep.pipeline.task_marker import TaskProgress
from mose.files.atomic_file import atomic_write
from mose.seeding import UINT64_ARRAY

_PAIR_BYTES = 16
_OBSERVED_PAIRS = 1000


class Similarities:
    """Exact similarities of documents by number; the shingles of recently used ones stay in memory."""

    def __init__(self, texts: TextStores, memory_bytes: int):
        self._texts = texts
        self._memory_bytes = memory_bytes
        self._sets: OrderedDict[int, UINT64_ARRAY] = OrderedDict()
        self._held_bytes = 0

    def of(self, first: int, second: int) -> float:
        """The Jaccard similarity of two documents."""
        return jaccard(self._set(first), self._set(second))

    def reaches(self, first: int, second: int, threshold: float) -> bool:
        """Whether two documents have at least this similarity, which sets of too different sizes cannot have."""
        one, two = self._set(first), self._set(second)
        low, high = sorted((len(one), len(two)))
        return low >= threshold * high and jaccard(one, two) >= threshold

    def _set(self, document: int) -> UINT64_ARRAY:
        found = self._sets.get(document)
        if found is not None:
            self._sets.move_to_end(document)
            return found
        found = self._sets[document] = shingle_set(self._texts.read(document))
        self._held_bytes += found.nbytes
        # Never the two of a pair: each was used last.
        while self._held_bytes > self._memory_bytes and len(self._sets) > 2:
            self._held_bytes -= self._sets.popitem(last=False)[1].nbytes
        return found


class _Verifier:
    """Decides pairs one by one, and leaves out those whose rows are linked already."""

    def __init__(self, run: Run, numbering: Numbering, texts: TextStores):
        self._threshold = run.config.threshold
        self._numbering, self._texts = numbering, texts
        self._similarities = Similarities(texts, run.config.memory_bytes // 4)
        self._linked = UnionFind()
        self._contaminated: set[int] = set()
        self.counts = {"pairs": 0, "verified": 0, "below_threshold": 0, "linked_already": 0}

    def verified(self, first_E: UINT64_ARRAY, second_E: UINT64_ARRAY, observe: Callable[[TaskProgress], None]) -> list[int]:
        """The places of the pairs that are near-duplicates."""
        rows = [self._numbering.row_of(side) for side in (first_E, second_E)]
        evaluation = [self._numbering.is_evaluation(side).tolist() for side in rows]
        contents = [self._texts.field(side, "content").tolist() for side in (first_E, second_E)]
        pairs = zip(first_E.tolist(), second_E.tolist(), *(side.tolist() for side in rows), *evaluation, *contents, strict=True)
        found = []
        for place, (first, second, row_one, row_two, is_one, is_two, content_one, content_two) in enumerate(pairs):
            if place % _OBSERVED_PAIRS == 0:
                observe(TaskProgress(rows=self.counts["pairs"] + place))
            trained_on = row_two if is_one else row_one
            if trained_on in self._contaminated if is_one or is_two else self._linked.find(row_one) == self._linked.find(row_two):
                self.counts["linked_already"] += 1
            elif content_one == content_two or self._similarities.reaches(first, second, self._threshold):
                found.append(place)
                if is_one or is_two:
                    self._contaminated.add(trained_on)
                else:
                    self._linked.union(row_one, row_two)
            else:
                self.counts["below_threshold"] += 1
        self.counts["pairs"] += len(first_E)
        self.counts["verified"] += len(found)
        return found


def write_verified(run: Run, task: int, observe: Callable[[TaskProgress], None]) -> None:
    """Run one task: its candidate pairs of at least the threshold, but for pairs within a component that others span already.

    Raises:
        MoseError: candidates, signatures or texts are missing or damaged.
    """
    files, numbering, texts = run.pairs(BANDS), run.numbering(), run.texts()
    marker = run.markers(SIGNATURES)[task]
    documents = (marker.counts["rows"] + marker.counts["evaluation_texts"]) * run.config.num_columns
    low = task << TASK_BITS
    verifier = _Verifier(run, numbering, texts)
    path = run.part(VERIFY, task, "pairs")
    with atomic_write(path) as file:
        writer = SegmentWriter(file)
        # Each pair takes about 250 bytes as Python numbers, beside its row numbers and contents.
        for first, last in ranges(files, low, low + max(documents, 1), run.config.memory_bytes // 2048):
            one, two = distinct_pairs(*read_sorted(files, first, last))
            found = np.array(verifier.verified(one, two, observe), np.int64)
            writer.add(one[found], two[found])
    run.finish(VERIFY, task, verifier.counts, [path], writer.lengths)
