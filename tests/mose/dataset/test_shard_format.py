"""Shards: read back by tarfile, numpy and webdataset as by our own reader, and refused when they are damaged."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from mose.dataset import shard_format
from mose.dataset.shard_format import RecordLayout, RowLabels, ShardReader, ShardWriter, row_key
from mose.errors import MoseError

LENGTH = 40
ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, 65_535), min_size=LENGTH, max_size=LENGTH), st.integers(0, 1), st.integers(0, 999_999)),
    min_size=1,
    max_size=5,
)


def layout_of(dtype: type[np.unsignedinteger] = np.uint16) -> RecordLayout:
    return RecordLayout(LENGTH, np.dtype(dtype))


def made_rows(count: int, dtype: type[np.unsignedinteger] = np.uint16) -> list[tuple[np.ndarray, int, int, int]]:
    random = np.random.default_rng(0)
    highest = np.iinfo(dtype).max
    return [(random.integers(0, highest, LENGTH).astype(dtype), i % 2, i + 3, i + 1) for i in range(count)]


def write_shard(path: Path, rows: list[tuple[np.ndarray, int, int, int]], layout: RecordLayout) -> bytes:
    seen = bytearray()
    with path.open("wb") as file:
        writer = ShardWriter(file, layout, 7, seen.extend)
        for row in rows:
            writer.write(*row)
        writer.close()
    assert bytes(seen) == path.read_bytes()
    return bytes(seen)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_tarfile_and_numpy_read_every_record(tmp_path: Path, dtype: type[np.unsignedinteger]) -> None:
    rows = made_rows(6, dtype)
    write_shard(tmp_path / "shard.tar", rows, layout_of(dtype))
    with tarfile.open(tmp_path / "shard.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [f"{row_key(7, i)}.{kind}" for i in range(6) for kind in ("npy", "json")]
        assert {(member.mtime, member.mode, member.uid, member.isfile()) for member in members} == {(0, 0o644, 0, True)}
        contents = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    for i, (tokens, mixed, num_tokens, num_snippets) in enumerate(rows):
        read = np.load(io.BytesIO(contents[2 * i]), allow_pickle=False)
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, tokens)
        assert json.loads(contents[2 * i + 1]) == {"mixed": mixed, "num_tokens": num_tokens, "num_snippets": num_snippets}


def test_webdataset_and_our_reader_agree(tmp_path: Path) -> None:
    rows = made_rows(5)
    write_shard(tmp_path / "shard.tar", rows, layout_of())
    reader = ShardReader(tmp_path / "shard.tar", layout_of(), 5)
    order = np.array([3, 0, 4, 1, 2])
    tokens, labels = reader.tokens(order), reader.labels(order)
    samples = list(webdataset.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False).decode())
    for place, row in enumerate(order):
        np.testing.assert_array_equal(samples[row]["npy"], tokens[place])
        found = {name: int(getattr(labels, name)[place]) for name in ("mixed", "num_tokens", "num_snippets")}
        assert samples[row]["json"] == found
    reader.close()


@given(ROWS)
@settings(max_examples=30)
def test_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[list[int], int, int]]) -> None:
    path = tmp_path_factory.mktemp("shard") / "shard.tar"
    written = [(np.array(tokens, dtype=np.uint16), mixed, number, number) for tokens, mixed, number in rows]
    content = write_shard(path, written, layout_of())
    assert len(content) == layout_of().file_size(len(rows))
    assert write_shard(path, written, layout_of()) == content
    reader = ShardReader(path, layout_of(), len(rows))
    every = np.arange(len(rows))
    assert reader.tokens(every).tolist() == [tokens for tokens, _, _ in rows]
    labels = reader.labels(every)
    assert labels.mixed.tolist() == [mixed for _, mixed, _ in rows]
    assert labels.num_tokens.tolist() == labels.num_snippets.tolist() == [number for _, _, number in rows]


def test_every_record_has_the_same_stride(tmp_path: Path) -> None:
    layout = layout_of()
    content = write_shard(tmp_path / "shard.tar", made_rows(4), layout)
    for row in range(4):
        assert content[row * layout.stride :].startswith(row_key(7, row).encode())


def test_a_copy_is_returned_not_the_map(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.tar", made_rows(2), layout_of())
    reader = ShardReader(tmp_path / "shard.tar", layout_of(), 2)
    tokens = reader.tokens(np.array([0]))
    tokens[:] = 0
    assert reader.tokens(np.array([0])).any()


def test_missing_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with pytest.raises(MoseError, match="shard.tar: no such shard, but the manifest lists it"):
        ShardReader(path, layout_of(), 3)
    content = write_shard(path, made_rows(3), layout_of())
    with pytest.raises(MoseError, match=rf"{len(content)} bytes, its manifest says .* \(4 rows\)"):
        ShardReader(path, layout_of(), 4)
    path.write_bytes(bytes(len(content)))
    with pytest.raises(MoseError, match="first record is not an array of 40 uint16"):
        ShardReader(path, layout_of(), 3)
    path.write_bytes(content)
    os.truncate(path, len(content) - 1)
    with pytest.raises(MoseError, match="truncated or not this data set's"):
        ShardReader(path, layout_of(), 3)


def test_a_damaged_label_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    layout = layout_of()
    content = bytearray(write_shard(path, made_rows(3), layout))
    content[layout.stride + layout.json_offset + 2] ^= 255
    path.write_bytes(content)
    reader = ShardReader(path, layout, 3)
    reader.labels(np.array([0, 2]))
    with pytest.raises(MoseError, match="json member is damaged"):
        reader.labels(np.array([1]))


def test_a_token_that_does_not_fit_the_stored_type_is_refused() -> None:
    layout = RecordLayout(8, np.dtype(np.uint16))
    with pytest.raises(MoseError, match="token id 65536 does not fit uint16"):
        layout.record("key", np.array([0, 0, 2, 65536, 7, 7, 7, 3], dtype=np.uint32), 0, 6, 1)


@pytest.mark.parametrize(("length", "dtype"), [(40, np.uint16), (100, np.uint32)])
def test_many_rows_at_once_have_the_bytes_of_one_record_after_another(
    monkeypatch: pytest.MonkeyPatch, length: int, dtype: type[np.unsignedinteger]
) -> None:
    monkeypatch.setattr(shard_format, "_ROWS_A_WRITE", 64)
    layout = RecordLayout(length, np.dtype(dtype))
    random = np.random.default_rng(0)
    rows = random.integers(0, 60_000, (200, length)).astype(dtype)
    labels = RowLabels(random.integers(0, 2, 200), random.integers(0, 1_000_000, 200), random.integers(0, 12, 200))
    file = io.BytesIO()
    writer = ShardWriter(file, layout, 123_456)
    writer.write_rows(rows[:150], RowLabels(labels.mixed[:150], labels.num_tokens[:150], labels.num_snippets[:150]))
    # Far into a shard all nine digits of the row number count.
    writer.rows = 987_654_321
    writer.write_rows(rows[150:], RowLabels(labels.mixed[150:], labels.num_tokens[150:], labels.num_snippets[150:]))
    numbers = [*range(150), *range(987_654_321, 987_654_371)]
    columns = zip(numbers, rows, labels.mixed, labels.num_tokens, labels.num_snippets, strict=True)
    assert file.getvalue() == b"".join(layout.record(row_key(123_456, number), *row) for number, *row in columns)


def test_wide_tokens_are_stored_narrow_where_they_fit_and_refused_where_not() -> None:
    layout, file = layout_of(), io.BytesIO()
    writer = ShardWriter(file, layout, 7)
    rows = np.full((3, layout.sequence_length), 65_535, dtype=np.uint32)
    labels = RowLabels(*(np.zeros(3, dtype=np.int64) for _ in range(3)))
    writer.write_rows(rows, labels)
    assert file.getvalue()[: layout.stride] == layout.record(row_key(7, 0), rows[0], 0, 0, 0)
    rows[1, 5] = 65_536
    with pytest.raises(MoseError, match="000007-000000004: token id 65536 does not fit uint16"):
        writer.write_rows(rows, labels)
    assert len(file.getvalue()) == 3 * layout.stride
