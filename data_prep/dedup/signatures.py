"""The first phase: reads texts, writes the key of every band of every text, sorted, and the normalised texts themselves."""

import contextlib
from collections.abc import Callable, Iterable

import numpy as np

from data_prep.dedup.inputs import InputRow, RepositoryFiles, RowRange, evaluation_rows
from data_prep.dedup.minhash.banding import band_keys
from data_prep.dedup.minhash.shingles import batches, normalize, shingles_of
from data_prep.dedup.minhash.signatures import signatures_of
from data_prep.dedup.phase import SIGNATURES, Run
from data_prep.dedup.storage.documents import TASK_BITS
from data_prep.dedup.storage.origins import OriginWriter
from data_prep.dedup.storage.segment_file import SegmentWriter
from data_prep.dedup.storage.text_store import TextWriter
from data_prep.pipeline.task_marker import TaskProgress
from mose.errors import MoseError
from mose.files.atomic_file import atomic_write
from mose.seeding import UINT64_ARRAY

# A file of a repository may have a megabyte: texts wait until there are this many characters or rows of them.
_BATCH_CHARACTERS = 1 << 20
_BATCH_ROWS = 512
# A pair takes 16 bytes, and sorting a segment needs about four copies.
_BYTES_PER_PAIR = 64


def write_signatures(run: Run, task: int, inputs: RowRange | RepositoryFiles, observe: Callable[[TaskProgress], None]) -> None:
    """Run one task: its rows, then its share of the evaluation texts.

    Raises:
        MoseError: an input cannot be read.
    """
    config = run.config
    paths = {kind: run.part(SIGNATURES, task, kind) for kind in ("pairs", "texts", "documents", "origins")}
    with contextlib.ExitStack() as stack:
        files = {kind: stack.enter_context(atomic_write(path)) for kind, path in paths.items()}
        outputs = SegmentWriter(files["pairs"]), TextWriter(files["texts"], files["documents"]), OriginWriter(files["origins"])
        writer = _Writer(run, task, *outputs, observe)
        writer.add_all(inputs.rows())
        rows = writer.rows
        writer.add_all(evaluation_rows(config.evaluation, config.num_columns, task, config.num_tasks))
        writer.flush()
        outputs[-1].close()
    counts = {"rows": rows, "evaluation_texts": writer.rows - rows, "empty_texts": writer.empty, "characters": writer.characters}
    counts["unreadable_repositories"] = len(inputs.unreadable) if isinstance(inputs, RepositoryFiles) else 0
    run.finish(SIGNATURES, task, counts, list(paths.values()), writer.pairs.lengths)


class _Writer:
    """Writes the keys and texts of one task; `rows` counts those taken so far."""

    def __init__(
        self,
        run: Run,
        task: int,
        pairs: SegmentWriter,
        texts: TextWriter,
        origins: OriginWriter,
        observe: Callable[[TaskProgress], None],
    ):
        self.pairs, self._texts, self._origins = pairs, texts, origins
        self._config, self._observe = run.config, observe
        self._first = task << TASK_BITS
        self._max_pairs = run.config.memory_bytes // 4 // _BYTES_PER_PAIR
        self._waiting: list[InputRow] = []
        self._waiting_characters = 0
        self._keys: list[UINT64_ARRAY] = []
        self._documents: list[UINT64_ARRAY] = []
        self._num_pairs = 0
        self.rows = self.empty = self.characters = 0

    def add_all(self, rows: Iterable[InputRow]) -> None:
        """Take rows, to the end of `rows`."""
        for row in rows:
            if row.origin is not None:
                place = self.rows + len(self._waiting)
                self._origins.add(place, row.origin.name, row.origin.path, row.origin.blob_id)
            self._waiting.append(row)
            self._waiting_characters += sum(map(len, row.texts))
            if len(self._waiting) >= _BATCH_ROWS or self._waiting_characters >= _BATCH_CHARACTERS:
                self._take_waiting()
        self._take_waiting()

    def flush(self) -> None:
        """Write the keys that wait as one segment."""
        if self._num_pairs:
            self.pairs.add(np.concatenate(self._keys), np.concatenate(self._documents))
        self._keys, self._documents, self._num_pairs = [], [], 0

    def _take_waiting(self) -> None:
        config, columns = self._config, self._config.num_columns
        documents = [normalize(text) for row in self._waiting for text in row.texts]
        self._texts.add(documents)
        first = self._first + self.rows * columns
        if (self.rows + len(self._waiting)) * columns >= 1 << TASK_BITS:
            raise MoseError(
                f"num_tasks: is {config.num_tasks}, so that a task has {1 << TASK_BITS} texts or more; expected more tasks"
            )
        for column in range(columns):
            places = np.arange(column, len(documents), columns)
            for part in batches([documents[place] for place in places]):
                texts = [documents[place] for place in places[part]]
                shingles = shingles_of(texts)
                signatures = signatures_of(shingles, config.num_permutations, config.method)
                has_text = shingles.lengths_D > 0
                keys = band_keys(signatures[has_text], config.bands, config.rows_per_band, column)
                numbers = places[part][has_text].astype(np.uint64) + np.uint64(first)
                self._keys.append(keys.ravel())
                self._documents.append(np.repeat(numbers, config.bands))
                self._num_pairs += keys.size
            if self._num_pairs > self._max_pairs:
                self.flush()
        self.rows += len(self._waiting)
        self.empty += documents.count("")
        self.characters += self._waiting_characters
        self._waiting, self._waiting_characters = [], 0
        self._observe(TaskProgress(rows=self.rows, bytes=self.characters))
