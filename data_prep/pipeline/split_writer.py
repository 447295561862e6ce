"""One task's rows of one split: pools are packed, then their rows go in random order to a shard, its index and its lineage.

Letters: R rows, S snippets (pieces in their places in rows), T slots of a row.
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
from data_prep.pipeline.row_shuffle import RowBlock, RowSpool, spread
from data_prep.pipeline.shuffle_buffer import CutFiles, WaitingFiles
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
    """Where a task's shard of a split lies below the data set."""
    return f"{split}/shard-{task:06d}.tar"


def index_path(split: str, task: int) -> str:
    """Where the index of that shard's rows lies."""
    return f"{split}/index-{task:06d}.npy"


def lineage_path(split: str, task: int) -> str:
    """Where the lineage table of that shard lies."""
    return f"{split}/lineage-{task:06d}.parquet"


class SplitWriter(contextlib.AbstractContextManager["SplitWriter"]):
    """Gathers files into pools and packs them. No file of the data set appears before `close`, and none if there is no row."""

    def __init__(self, dataset: Path, split: str, task: int, seed: int, config: PackingConfig, tokenizer: Tokenizer):
        self._dataset, self._split, self._task, self._seed = dataset, split, task, seed
        self._config = config
        self._tokenizer = tokenizer
        self._balance = LabelBalance(config.mixed_share)
        self._waiting = WaitingFiles()
        self._pools = 0
        self._spool = RowSpool(dataset / shard_path(split, task), derive_key(seed, "row order", split, task))
        self.counts = RowCounts()
        self.tokens_by_language: Counter[str] = Counter()
        self.repositories: set[str] = set()

    def add(self, files: CutFiles) -> None:
        """Take files; a pool is packed when two pools' worth of tokens wait, so that the last one is never small."""
        self._waiting.add(files)
        for file, tokens in zip(files.lineage, files.tokens_of_files().tolist(), strict=True):
            if tokens:
                self.tokens_by_language[file.language] += tokens
                self.repositories.add(file.repository)
        while self._waiting.num_tokens >= 2 * self._config.pool_tokens:
            self._pack_pool(self._config.pool_tokens)

    def close(self) -> ShardEntry | None:
        """Pack what waits and publish shard, index and lineage; None if the split has no row."""
        if self._waiting.num_tokens:
            self._pack_pool(self._waiting.num_tokens)
        if not self._spool.rows:
            return None
        layout = RecordLayout(self._config.sequence_length, self._tokenizer.dtype)
        names = [name(self._split, self._task) for name in (shard_path, index_path, lineage_path)]
        with contextlib.ExitStack() as files:
            shard, index, lineage = (_HashedFile(files.enter_context(atomic_write(self._dataset / name))) for name in names)
            writer = ShardWriter(shard, layout, self._task)
            with pq.ParquetWriter(lineage, LINEAGE_SCHEMA, compression="zstd") as table:
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
        """Let go of the rows on disk."""
        self._spool.__exit__(*error)

    def _pack_pool(self, num_tokens: int) -> None:
        """Pack waiting files of `num_tokens` tokens, drawn by chance, so that not only the repositories just read meet."""
        pool = self._waiting.take(num_tokens, generator(self._seed, "pool", self._split, self._task, self._pools))
        table = pool.table()
        packing = pack(table, derive_key(self._seed, self._split, self._task, self._pools), self._config, self._balance)
        self.counts.add(packing, table)
        self._pools += 1
        if packing.rows:
            self._spool_rows(packing, pool)

    def _spool_rows(self, packing: Packing, pool: CutFiles) -> None:
        order_R, keys_R = self._spool.order(packing.rows)
        snippets_R = packing.snippets_R[order_R]
        pieces_S = packing.pieces_S[spread(packing.first_snippets()[order_R], snippets_R)]
        lengths_S = pool.lengths_P[pieces_S]
        lengths_S[np.cumsum(snippets_R) - 1] -= packing.cut_tokens_R[order_R]
        starts_S = pool.starts_P[pieces_S]
        length, special = self._config.sequence_length, self._tokenizer.special
        tokens_RT = assemble_rows(pool.tokens_N, starts_S, lengths_S, snippets_R, special, length)
        num_tokens_R = np.add.reduceat(lengths_S + 1, first_of_each(snippets_R)) + 1
        labels = RowLabels(packing.mixed_R[order_R], num_tokens_R, snippets_R)
        self._spool.write(keys_R, RowBlock(tokens_RT, labels, _lines(pool, pieces_S, lengths_S, snippets_R)))

    def _write_blocks(self, shard: ShardWriter, lineage: pq.ParquetWriter) -> Iterator[NDArray[np.void]]:
        """Write all rows and their lineage; the entries of the index, block by block."""
        for block in self._spool.blocks(self._config.sequence_length, self._tokenizer.dtype):
            row_S = np.repeat(np.arange(shard.rows, shard.rows + len(block.tokens_RT)), block.labels.num_snippets)
            lineage.write_table(block.lines.add_column(0, "row", pa.array(row_S)).cast(LINEAGE_SCHEMA))
            shard.write_rows(block.tokens_RT, block.labels)
            yield make_index(block.tokens_RT, block.labels)


def _lines(pool: CutFiles, pieces_S: INT64_ARRAY, lengths_S: INT64_ARRAY, snippets_R: INT64_ARRAY) -> pa.Table:
    """The lineage of snippets, without row numbers."""
    files = pool.lineage_batch().take(pa.array(pool.file_of_P[pieces_S]))
    snippet_S = np.arange(len(pieces_S)) - np.repeat(first_of_each(snippets_R), snippets_R)
    bytes_S2 = pool.bytes_P2[pieces_S]
    numbers = (lengths_S.astype(np.int32), np.ascontiguousarray(bytes_S2[:, 0]), np.ascontiguousarray(bytes_S2[:, 1]))
    columns = [pa.array(snippet_S.astype(np.int32)), *files.columns, *(pa.array(column) for column in numbers)]
    return pa.table(columns, names=LINEAGE_SCHEMA.names[1:])


class _HashedFile:
    """A file being written, and the SHA-256 of what was written; as much of a file as its writers ask for."""

    closed = False

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Append bytes."""
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Nothing waits here."""

    def digest(self) -> str:
        """SHA-256 of everything written, as hexadecimal text."""
        return self._digest.hexdigest()
