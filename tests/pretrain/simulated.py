"""A data set of any size that takes hardly any disk: shards full of holes, in which only the rows of one batch are real."""

import os
from pathlib import Path

import numpy as np

from mose.dataset.manifest import Manifest, ShardEntry, write_manifest
from mose.dataset.row_index import INDEX_DTYPE, INDEX_OFFSET, index_header, make_index
from mose.dataset.shard_format import BLOCK, RecordLayout, RowLabels, row_key
from pretrain.data.order import rows_of_run

LAYOUT = RecordLayout(2048, np.dtype(np.uint16))


def simulated(folder: Path, shards: int, rows: int, start: int, batch: int) -> Path:
    """Write `shards` shards of `rows` rows; real are the rows of the batch at `start` (seed 0) and each first header."""
    numbers, _ = rows_of_run(0, start, batch, shards * rows)
    entries = []
    (folder / "train").mkdir(parents=True)
    header = index_header(rows)
    labels = RowLabels(np.array([1]), np.array([2048]), np.array([2]))
    for number in range(shards):
        names = [f"train/shard-{number:06d}.tar", f"train/index-{number:06d}.npy"]
        with (folder / names[0]).open("wb") as shard, (folder / names[1]).open("wb") as index:
            index.write(header)
            shard.seek(BLOCK)
            shard.write(LAYOUT.npy_header)
            tokens_1T = np.full((1, 2048), 7 + number % 100, np.uint16)
            entry = make_index(tokens_1T, labels).tobytes()
            for row in (numbers[numbers // rows == number] % rows).tolist():
                shard.seek(row * LAYOUT.stride)
                shard.write(LAYOUT.record(row_key(number, row), tokens_1T[0], 1, 2048, 2))
                index.seek(INDEX_OFFSET + row * INDEX_DTYPE.itemsize)
                index.write(entry)
            os.truncate(shard.fileno(), LAYOUT.file_size(rows))
            os.truncate(index.fileno(), INDEX_OFFSET + rows * INDEX_DTYPE.itemsize)
        size = LAYOUT.file_size(rows)
        entries.append(ShardEntry(names[0], rows, rows * 2048, size, "0", names[1], "0", "", ""))
    write_manifest(folder, Manifest("0" * 16, "0" * 16, 1000, 2048, {"train": tuple(entries)}))
    return folder
