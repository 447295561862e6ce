"""One task's rows of one split: pools are packed, rows go to a shard, their lineage to a parquet table beside it."""

import contextlib
import hashlib
from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.config import PackingConfig
from data_prep.packed_rows import LabelBalance, PackedRow, RowCounts
from data_prep.packing import pack
from data_prep.pool import CutFile, Piece, Pool
from mose.atomic_file import atomic_write, file_sha256
from mose.manifest import ShardEntry
from mose.packed_sequence import assemble, packed_length
from mose.row_index import index_bytes, make_index
from mose.seeding import derive_key, generator
from mose.shard_format import RecordLayout, RowLabels, ShardWriter
from mose.tokenizer import Tokenizer

# One line a snippet. Where faithful packing cut the last token of a row, `num_tokens` is without it, `end_byte` still with it.
LINEAGE_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("snippet", pa.int32()),
        ("repository", pa.string()),
        ("path", pa.string()),
        ("blob_id", pa.string()),
        ("licence", pa.string()),
        ("language", pa.string()),
        ("num_tokens", pa.int32()),
        ("start_byte", pa.int64()),
        ("end_byte", pa.int64()),
    ]
)


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
    """Gathers files into pools and writes their rows. No file appears before `close`, and none if no row was written."""

    def __init__(self, dataset: Path, split: str, task: int, seed: int, config: PackingConfig, tokenizer: Tokenizer):
        self._dataset, self._split, self._task, self._seed = dataset, split, task, seed
        self._config = config
        self._tokenizer = tokenizer
        self._layout = RecordLayout(config.sequence_length, tokenizer.dtype)
        self._balance = LabelBalance(config.mixed_share)
        self._files: list[CutFile] = []
        self._buffered_tokens = 0
        self._pools = 0
        self._open_files = contextlib.ExitStack()
        self._shard: ShardWriter | None = None
        self._lineage: pq.ParquetWriter | None = None
        self._digest = hashlib.sha256()
        self._index: list[NDArray[np.void]] = []
        self.counts = RowCounts()
        self.tokens_by_language: Counter[str] = Counter()
        self.repositories: set[str] = set()

    def add(self, file: CutFile) -> None:
        """Take one file; a pool is packed when two pools' worth of tokens wait, so that the last one is never small."""
        self._files.append(file)
        self._buffered_tokens += len(file.tokens_N)
        self.tokens_by_language[file.lineage.language] += len(file.tokens_N)
        self.repositories.add(file.lineage.repository)
        if self._buffered_tokens >= 2 * self._config.pool_tokens:
            self._write_pool(self._config.pool_tokens)

    def close(self) -> ShardEntry | None:
        """Pack what waits and publish the shard and its lineage; None if the split has no row."""
        if self._files:
            self._write_pool(self._buffered_tokens)
        if self._shard is None:
            return None
        self._shard.close()
        self._open_files.close()
        names = [name(self._split, self._task) for name in (shard_path, index_path, lineage_path)]
        shard, index, lineage = (self._dataset / name for name in names)
        with atomic_write(index) as file:
            file.write(index_bytes(np.concatenate(self._index)))
        return ShardEntry(
            path=names[0],
            rows=self.counts.rows,
            tokens=self.counts.tokens,
            num_bytes=shard.stat().st_size,
            sha256=self._digest.hexdigest(),
            index_path=names[1],
            index_sha256=file_sha256(index),
            lineage_path=names[2],
            lineage_sha256=file_sha256(lineage),
        )

    def __exit__(self, *error: Any) -> None:
        """After an error, remove what was written."""
        self._open_files.__exit__(*error)

    def _write_pool(self, num_tokens: int) -> None:
        """Pack waiting files of `num_tokens` tokens, drawn by chance, so that not only the repositories just read meet."""
        random = generator(self._seed, "pool", self._split, self._task, self._pools)
        chosen, taken = set(), 0
        for index in random.permutation(len(self._files)).tolist():
            if taken < num_tokens:
                chosen.add(index)
                taken += len(self._files[index].tokens_N)
        pool = Pool([file for index, file in enumerate(self._files) if index in chosen])
        self._files = [file for index, file in enumerate(self._files) if index not in chosen]
        self._buffered_tokens -= taken
        table = pool.table()
        packing = pack(table, derive_key(self._seed, self._split, self._task, self._pools), self._config, self._balance)
        first_row = self.counts.rows
        self.counts.add(packing, table)
        self._pools += 1
        if packing.rows:
            self._write_rows(packing.rows, pool, first_row)

    def _write_rows(self, rows: list[PackedRow], pool: Pool, first_row: int) -> None:
        shard, lineage = self._opened()
        columns: dict[str, list[Any]] = {name: [] for name in LINEAGE_SCHEMA.names}
        for number, row in enumerate(rows, start=first_row):
            pieces = [pool.piece(piece) for piece in row.pieces]
            texts = [piece.tokens for piece in pieces]
            if row.cut_tokens:
                texts[-1] = texts[-1][: -row.cut_tokens]
            tokens_T = assemble(texts, self._tokenizer.special, self._config.sequence_length, self._tokenizer.dtype)
            lengths = [len(text) for text in texts]
            shard.write(tokens_T, row.mixed, packed_length(lengths), len(texts))
            labels = RowLabels(*(np.array([value]) for value in (row.mixed, packed_length(lengths), len(texts))))
            self._index.append(make_index(tokens_T[None], labels))
            _append_lineage(columns, number, pieces, lengths)
        lineage.write_table(pa.table(columns, schema=LINEAGE_SCHEMA))

    def _opened(self) -> tuple[ShardWriter, pq.ParquetWriter]:
        if self._shard is None or self._lineage is None:
            tar = self._open(shard_path(self._split, self._task))
            self._shard = ShardWriter(tar, self._layout, self._task, self._digest.update)
            table = self._open(lineage_path(self._split, self._task))
            self._lineage = pq.ParquetWriter(table, LINEAGE_SCHEMA, compression="zstd")
            self._open_files.callback(self._lineage.close)
        return self._shard, self._lineage

    def _open(self, name: str) -> IO[bytes]:
        return self._open_files.enter_context(atomic_write(self._dataset / name))


def _append_lineage(columns: dict[str, list[Any]], row: int, pieces: list[Piece], lengths: list[int]) -> None:
    for snippet, (piece, length) in enumerate(zip(pieces, lengths, strict=True)):
        file = piece.lineage
        values = (row, snippet, file.repository, file.path, file.blob_id, file.licence, file.language, length)
        for name, value in zip(columns, (*values, piece.start_byte, piece.end_byte), strict=True):
            columns[name].append(value)
