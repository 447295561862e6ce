"""Texts to files cut into pieces: encoded many at a time, whatever repositories they are of, and freed of evaluation text."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_prep.filters.decontamination import Decontaminator, drop_contaminated
from data_prep.filters.dropped_log import DroppedLog
from data_prep.filters.filters import FilterCounts
from data_prep.packing.config import PackingConfig
from data_prep.packing.pack import piece_limits
from data_prep.pipeline.shuffle_buffer import CutFiles
from data_prep.shards.lineage import lineage_of
from data_prep.sources.repositories import TextFile
from data_prep.tokenization.chunking import VocabularyTable, byte_offsets, cut, vocabulary_table
from data_prep.tokenization.encoding import Encoder
from mose.array_types import INT64_ARRAY
from mose.tokenizer import Tokenizer

# Texts encoded at a time. gigatoken takes 1.5 ms for any call (0.10.0): 17 MB/s at 64 KB a call, 34 at 1 MB, 37 at 4 MB.
BATCH_CHARACTERS = 1 << 22


@dataclass(frozen=True)
class Tools:
    """What it takes to cut texts; loaded once a task."""

    encoder: Encoder
    table: VocabularyTable
    config: PackingConfig
    decontaminator: Decontaminator | None = None

    @staticmethod
    def load(tokenizer: Tokenizer, config: PackingConfig, decontaminator: Decontaminator | None = None) -> "Tools":
        """Those of a tokenizer."""
        return Tools(Encoder(tokenizer), vocabulary_table(tokenizer), config, decontaminator)


class Cutter:
    """Gathers texts into batches and hands them on cut into pieces, in the order in which they came."""

    def __init__(self, tools: Tools, take: Callable[[CutFiles], object], counts: FilterCounts, dropped: DroppedLog | None = None):
        """`take` is given each batch; pieces that repeat evaluation text are counted and written into `dropped` instead."""
        self._tools = tools
        self._take = take
        self._counts = counts
        self._dropped = dropped
        self._batch: list[TextFile] = []
        self._characters = 0

    def add(self, file: TextFile) -> None:
        """Take one text."""
        self._batch.append(file)
        self._characters += len(file.text)
        if self._characters >= BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Hand on what waits."""
        batch, self._batch, self._characters = self._batch, [], 0
        if batch:
            self._take(self._cut(batch))

    def _cut(self, batch: list[TextFile]) -> CutFiles:
        tools, texts = self._tools, [file.text for file in batch]
        tokens_N, files_F1 = tools.encoder.encode_flat(texts)
        marks_N = tools.table.marks(tokens_N)
        bounds, pieces_F = cut(marks_N, files_F1, piece_limits(np.diff(files_F1), tools.config))
        bytes_P2 = byte_offsets(marks_N, bounds, pieces_F, texts, tools.table.merges_space_mark)
        files = CutFiles(
            lineage=[lineage_of(file.source) for file in batch],
            tokens_N=tokens_N,
            starts_P=bounds[:-1],
            lengths_P=np.diff(bounds),
            bytes_P2=bytes_P2,
            file_of_P=np.repeat(np.arange(len(batch)), pieces_F),
        )
        return self._without_contaminated(files, batch, pieces_F) if tools.decontaminator else files

    def _without_contaminated(self, files: CutFiles, batch: list[TextFile], pieces_F: INT64_ARRAY) -> CutFiles:
        ends_F = np.cumsum(pieces_F).tolist()
        offsets = [
            np.concatenate(([0], files.bytes_P2[end - pieces : end, 1]))
            for end, pieces in zip(ends_F, pieces_F.tolist(), strict=True)
        ]
        kept = drop_contaminated(self._tools.decontaminator, batch, offsets, self._counts, self._dropped)
        return files.pieces(np.concatenate(kept))
