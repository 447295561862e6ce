"""The index beside a shard: an ordinary .npy file at fixed offsets, labels and checksums by row, and what is refused."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from mose.dataset.row_index import INDEX_DTYPE, INDEX_OFFSET, RowIndex, index_bytes, index_header, make_index
from mose.dataset.shard_format import RowLabels
from mose.errors import MoseError

ROWS = np.arange(24, dtype=np.uint16).reshape(3, 8)
LABELS = RowLabels(np.array([1, 0, 1]), np.array([8, 5, 0]), np.array([2, 1, 0]))


def test_entries_lie_at_the_same_offset_for_any_number_of_rows() -> None:
    for rows in (0, 1, 1000, 10**6):
        content = index_bytes(np.zeros(rows, INDEX_DTYPE))
        assert len(content) == INDEX_OFFSET + rows * INDEX_DTYPE.itemsize
        assert content[:INDEX_OFFSET] == index_header(rows)


def test_labels_and_checksums_come_back(tmp_path: Path) -> None:
    path = tmp_path / "index.npy"
    path.write_bytes(index_bytes(make_index(ROWS, LABELS)))
    index = RowIndex(path, 3)
    labels = index.labels(np.array([2, 0]))
    assert labels.num_tokens.tolist() == [0, 8] and labels.mixed.tolist() == [1, 1] and labels.num_snippets.tolist() == [0, 2]
    assert index.checksums(np.array([1])).tolist() == [zlib.crc32(ROWS[1].tobytes())]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (index_bytes(np.zeros(2, INDEX_DTYPE)), r"expected \(3,\)"),
        (index_bytes(np.zeros(3, INDEX_DTYPE))[:-1], "not a readable index"),
        (b"rows", "not a readable index"),
        (None, "no such index"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "index.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MoseError, match=told):
        RowIndex(path, 3)
