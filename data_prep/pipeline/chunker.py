"""Texts to chunks: encodes and splits many texts at a time, and drops chunks that repeat evaluation text."""

from collections.abc import Callable

import numpy as np

from data_prep.filters.decontamination import Decontaminator, drop_contaminated
from data_prep.filters.dropped_log import DroppedLog
from data_prep.filters.filters import FilterCounts
from data_prep.packing.config import PackingConfig
from data_prep.packing.pack import chunk_limits
from data_prep.pipeline.shuffle_buffer import ChunkedFiles
from data_prep.shards.lineage import lineage_of
from data_prep.sources.repositories import TextFile
from data_prep.tokenization.chunking import byte_offsets, chunk_files, vocabulary_table
from data_prep.tokenization.encoding import Encoder
from mose.tokenizer import Tokenizer

# Characters per call of the encoder. A call of gigatoken 0.10.0 costs 1.5 ms whatever its size, so small batches are slow:
# 17 MB/s with 64 KB per call, 34 with 1 MB, 37 with 4 MB.
BATCH_CHARACTERS = 1 << 22


class Chunker:
    """Encodes texts, splits them into chunks and drops contaminated chunks; made once per task."""

    def __init__(self, tokenizer: Tokenizer, config: PackingConfig, decontaminator: Decontaminator | None = None):
        self._encoder = Encoder(tokenizer)
        self._table = vocabulary_table(tokenizer)
        self._config = config
        self._decontaminator = decontaminator

    def chunk(self, texts: list[TextFile], counts: FilterCounts, dropped: DroppedLog | None = None) -> ChunkedFiles:
        """Chunks of texts in their order; contaminated chunks are added to `counts` and `dropped` instead."""
        strings = [file.text for file in texts]
        tokens_N, files_F1 = self._encoder.encode_flat(strings)
        marks_N = self._table.marks(tokens_N)
        bounds, chunks_F = chunk_files(marks_N, files_F1, chunk_limits(np.diff(files_F1), self._config))
        files = ChunkedFiles(
            lineage=[lineage_of(file) for file in texts],
            tokens_N=tokens_N,
            starts_C=bounds[:-1],
            lengths_C=np.diff(bounds),
            bytes_C2=byte_offsets(marks_N, bounds, chunks_F, strings, self._table.merges_space_mark),
            file_of_C=np.repeat(np.arange(len(texts)), chunks_F),
        )
        if self._decontaminator is None:
            return files
        ends_F = np.cumsum(chunks_F).tolist()
        offsets = [
            np.concatenate(([0], files.bytes_C2[end - count : end, 1]))
            for end, count in zip(ends_F, chunks_F.tolist(), strict=True)
        ]
        return files.chunks(np.concatenate(drop_contaminated(self._decontaminator, texts, offsets, counts, dropped)))


class TextBatcher:
    """Collects the texts of one split until a batch is full, so that the encoder is called rarely."""

    def __init__(
        self,
        chunker: Chunker,
        consume: Callable[[ChunkedFiles], object],
        counts: FilterCounts,
        dropped: DroppedLog | None = None,
    ):
        """`consume` gets the chunks of each batch, in the order of the texts."""
        self._chunker = chunker
        self._consume = consume
        self._counts = counts
        self._dropped = dropped
        self._batch: list[TextFile] = []
        self._characters = 0

    def add(self, file: TextFile) -> None:
        """Add one text."""
        self._batch.append(file)
        self._characters += len(file.text)
        if self._characters >= BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Chunk the texts of an incomplete batch."""
        batch, self._batch, self._characters = self._batch, [], 0
        if batch:
            self._consume(self._chunker.chunk(batch, self._counts, self._dropped))
