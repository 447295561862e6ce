"""Writes one split of one task: packs samples of the shuffle buffer, then writes the shuffled rows as shard, index and lineage.

Letters: R rows, S snippets (chunks at their places in rows), T slots of a row.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.packing.config import PackingConfig
from data_prep.packing.pack import pack
from data_prep.packing.rows import LabelBalance, Packing, RowCounts, first_of_each
from data_prep.pipeline.row_shuffle import RowBlock, RowShuffle, spread
from data_prep.pipeline.shuffle_buffer import ChunkedFiles, ShuffleBuffer
from data_prep.shards.lineage import LINEAGE_SCHEMA
from mose.array_types import INT64_ARRAY
from mose.dataset.manifest import ShardEntry
from mose.dataset.packed_sequence import assemble_rows
from mose.dataset.row_index import index_bytes, make_index
from mose.dataset.shard_format import RecordLayout, RowLabels, ShardWriter
from mose.files.atomic_file import atomic_write
from mose.seeding import derive_key, generator
from mose.tokenizer import Tokenizer


def shard_path(split: str, task: int) -> str:
    """Path of a task's shard of a split, relative to the data set."""
    return f"{split}/shard-{task:06d}.tar"


def index_path(split: str, task: int) -> str:
    """Path of that shard's row index."""
    return f"{split}/index-{task:06d}.npy"


def lineage_path(split: str, task: int) -> str:
    """Path of that shard's lineage table."""
    return f"{split}/lineage-{task:06d}.parquet"


class SplitWriter(contextlib.AbstractContextManager["SplitWriter"]):
    """Buffers, packs and shuffles the files of a split; no file appears in the data set before `close`, or without a row."""

    def __init__(
        self,
        dataset: Path,
        split: str,
        task: int,
        seed: int,
        config: PackingConfig,
        tokenizer: Tokenizer,
        schema: pa.Schema = LINEAGE_SCHEMA,
    ):
        """`schema` is that of the lineage table: `LINEAGE_SCHEMA`, or `MARKED_SCHEMA` where filters replace secrets."""
        self._schema = schema
        self._dataset, self._split, self._task, self._seed = dataset, split, task, seed
        self._config = config
        self._tokenizer = tokenizer
        self._balance = LabelBalance(config.mixed_share)
        self._buffer = ShuffleBuffer()
        self._samples = 0
        self._shuffle = RowShuffle(dataset / shard_path(split, task), derive_key(seed, "row order", split, task))
        self.counts = RowCounts()
        self.tokens_by_language: Counter[str] = Counter()
        self.repositories: set[str] = set()

    def add(self, files: ChunkedFiles) -> None:
        """Add files to the shuffle buffer, and pack a sample whenever it holds two.

        One sample's worth stays behind, so that the next is drawn from more than it takes and the last one is never small."""
        self._buffer.add(files)
        for file, tokens in zip(files.lineage, files.tokens_of_files().tolist(), strict=True):
            if tokens:
                self.tokens_by_language[file.language] += tokens
                self.repositories.add(file.repository)
        while self._buffer.num_tokens >= 2 * self._config.pool_tokens:
            self._pack_sample(self._config.pool_tokens)

    @property
    def tokens(self) -> int:
        """Tokens of text so far, packed or waiting."""
        return sum(self.tokens_by_language.values())

    def close(self) -> ShardEntry | None:
        """Pack the rest of the buffer and publish shard, index and lineage; None if the split has no row."""
        if self._buffer.num_tokens:
            self._pack_sample(self._buffer.num_tokens)
        if not self._shuffle.rows:
            return None
        layout = RecordLayout(self._config.sequence_length, self._tokenizer.dtype)
        names = [name(self._split, self._task) for name in (shard_path, index_path, lineage_path)]
        with contextlib.ExitStack() as files:
            shard, index, lineage = (_HashedFile(files.enter_context(atomic_write(self._dataset / name))) for name in names)
            writer = ShardWriter(shard, layout, self._task)
            with pq.ParquetWriter(lineage, self._schema, compression="zstd") as table:
                index.write(index_bytes(np.concatenate(list(self._write_blocks(writer, table)))))
            writer.close()
        return ShardEntry(
            path=names[0],
            rows=self.counts.rows,
            tokens=self.counts.tokens,
            num_bytes=layout.file_size(self.counts.rows),
            sha256=shard.digest(),
            index_path=names[1],
            index_sha256=index.digest(),
            lineage_path=names[2],
            lineage_sha256=lineage.digest(),
        )

    def __exit__(self, *error: Any) -> None:
        """Remove the temporary rows."""
        self._shuffle.__exit__(*error)

    def _pack_sample(self, num_tokens: int) -> None:
        """Pack a random sample of `num_tokens` tokens of the buffer into rows."""
        # The word "pool" is part of the seed, and so of every data set's bytes.
        sample = self._buffer.sample(num_tokens, generator(self._seed, "pool", self._split, self._task, self._samples))
        table = sample.table()
        packing = pack(table, derive_key(self._seed, self._split, self._task, self._samples), self._config, self._balance)
        self.counts.add(packing, table)
        self._samples += 1
        if packing.rows:
            self._shuffle_rows(packing, sample)

    def _shuffle_rows(self, packing: Packing, sample: ChunkedFiles) -> None:
        order_R, keys_R = self._shuffle.order(packing.rows)
        snippets_R = packing.snippets_R[order_R]
        chunks_S = packing.chunks_S[spread(packing.first_snippets()[order_R], snippets_R)]
        lengths_S = sample.lengths_C[chunks_S]
        lengths_S[np.cumsum(snippets_R) - 1] -= packing.cut_tokens_R[order_R]
        starts_S = sample.starts_C[chunks_S]
        length, special = self._config.sequence_length, self._tokenizer.special
        tokens_RT = assemble_rows(sample.tokens_N, starts_S, lengths_S, snippets_R, special, length)
        num_tokens_R = np.add.reduceat(lengths_S + 1, first_of_each(snippets_R)) + 1
        labels = RowLabels(packing.mixed_R[order_R], num_tokens_R, snippets_R)
        self._shuffle.write(keys_R, RowBlock(tokens_RT, labels, _lines(sample, chunks_S, lengths_S, snippets_R, self._schema)))

    def _write_blocks(self, shard: ShardWriter, lineage: pq.ParquetWriter) -> Iterator[NDArray[np.void]]:
        """Write all rows and their lineage; yields the entries of the index, block by block."""
        for block in self._shuffle.blocks(self._config.sequence_length, self._tokenizer.dtype):
            row_S = np.repeat(np.arange(shard.rows, shard.rows + len(block.tokens_RT)), block.labels.num_snippets)
            lineage.write_table(block.lines.add_column(0, "row", pa.array(row_S)).cast(self._schema))
            shard.write_rows(block.tokens_RT, block.labels)
            yield make_index(block.tokens_RT, block.labels)


def _lines(
    sample: ChunkedFiles, chunks_S: INT64_ARRAY, lengths_S: INT64_ARRAY, snippets_R: INT64_ARRAY, schema: pa.Schema
) -> pa.Table:
    """The lineage of snippets, without row numbers, which are known only after the shuffle."""
    snippet_S = np.arange(len(chunks_S)) - np.repeat(first_of_each(snippets_R), snippets_R)
    bytes_S2 = sample.bytes_C2[chunks_S]
    numbers = {
        "snippet": snippet_S.astype(np.int32),
        "num_tokens": lengths_S.astype(np.int32),
        "start_byte": np.ascontiguousarray(bytes_S2[:, 0]),
        "end_byte": np.ascontiguousarray(bytes_S2[:, 1]),
    }
    file_S = pa.array(sample.file_of_C[chunks_S])
    columns = {
        name: pa.array(numbers[name]) if name in numbers else sample.lineage_column(name).take(file_S)
        for name in schema.names[1:]
    }
    return pa.table(columns)


class _HashedFile:
    """Computes the SHA-256 of a file while it is written; has the methods of a file that parquet and shard writers call."""

    closed = False

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Append bytes."""
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Nothing is buffered here."""

    def digest(self) -> str:
        """SHA-256 of everything written, as hexadecimal text."""
        return self._digest.hexdigest()
