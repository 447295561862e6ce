"""The third phase: the exact Jaccard similarity of candidate pairs. A task takes the pairs whose first document it wrote.

LSH alone is not enough: of natural code, about half of its pairs are below the threshold.
"""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from data_prep.dedup.candidates import distinct_pairs
from data_prep.dedup.minhash.shingles import jaccard, shingle_set
from data_prep.dedup.phase import BANDS, SIGNATURES, VERIFY, Run
from data_prep.dedup.storage.documents import TASK_BITS
from data_prep.dedup.storage.segment_file import SegmentWriter, ranges, read_sorted
from data_prep.dedup.storage.text_store import TextStores
from data_prep.pipeline.task_marker import TaskProgress
from mose.files.atomic_file import atomic_write
from mose.seeding import UINT64_ARRAY

# An entry of the dictionary of decided pairs, with its tuple and numbers.
_DECIDED_BYTES = 256
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
    """Decides pairs one by one; pairs of texts that were compared already are decided by what was found then."""

    def __init__(self, run: Run, texts: TextStores):
        self._threshold = run.config.threshold
        self._texts = texts
        self._similarities = Similarities(texts, run.config.memory_bytes // 4)
        self._decided: dict[tuple[int, int], bool] = {}
        self._max_decided = run.config.memory_bytes // 4 // _DECIDED_BYTES
        self.counts = {"pairs": 0, "verified": 0, "below_threshold": 0, "compared": 0}

    def verified(self, first_E: UINT64_ARRAY, second_E: UINT64_ARRAY, observe: Callable[[TaskProgress], None]) -> list[int]:
        """The places of the pairs that are near-duplicates."""
        contents = (self._texts.field(side, "content").tolist() for side in (first_E, second_E))
        found = []
        for place, (first, second, *content) in enumerate(zip(first_E.tolist(), second_E.tolist(), *contents, strict=True)):
            if place % _OBSERVED_PAIRS == 0:
                observe(TaskProgress(rows=self.counts["pairs"] + place))
            if content[0] == content[1] or self._reaches(first, second, (min(content), max(content))):
                found.append(place)
        self.counts["pairs"] += len(first_E)
        self.counts["verified"] += len(found)
        self.counts["below_threshold"] += len(first_E) - len(found)
        return found

    def _reaches(self, first: int, second: int, contents: tuple[int, int]) -> bool:
        """Whether two texts that differ are near-duplicates."""
        # Copies of one text bring the same comparison many times.
        decided = self._decided.get(contents)
        if decided is None:
            if len(self._decided) >= self._max_decided:
                self._decided.clear()
            decided = self._decided[contents] = self._similarities.reaches(first, second, self._threshold)
            self.counts["compared"] += 1
        return decided


def write_verified(run: Run, task: int, observe: Callable[[TaskProgress], None]) -> None:
    """Run one task: its candidate pairs of at least the threshold.

    Raises:
        MoseError: candidates, signatures or texts are missing or damaged.
    """
    files, texts = run.pairs(BANDS), run.texts()
    marker = run.markers(SIGNATURES)[task]
    documents = (marker.counts["rows"] + marker.counts["evaluation_texts"]) * run.config.num_columns
    low = task << TASK_BITS
    verifier = _Verifier(run, texts)
    path = run.part(VERIFY, task, "pairs")
    with atomic_write(path) as file:
        writer = SegmentWriter(file)
        # A pair takes about 150 bytes as Python numbers.
        for first, last in ranges(files, low, low + max(documents, 1), run.config.memory_bytes // 2048):
            one, two = distinct_pairs(*read_sorted(files, first, last))
            found = np.array(verifier.verified(one, two, observe), np.int64)
            writer.add(one[found], two[found])
    run.finish(VERIFY, task, verifier.counts, [path], writer.lengths)
