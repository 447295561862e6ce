"""Waiting files: each is taken once and whole, by chance, with its tokens and lineage; nothing else is held."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.pipeline.shuffle_buffer import ChunkedFiles, ShuffleBuffer, join_files
from data_prep.shards.lineage import FileLineage, lineage_of
from data_prep.sources.repositories import SourceFile, TextFile

SIZES = st.lists(st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=5), min_size=1, max_size=4)


def make_files(sizes: list[list[int]], first: int = 0) -> ChunkedFiles:
    """Files with chunks of these sizes; every token of file f is its number, so are its path and the bytes of its chunks."""
    chunks = [(number, size) for number, file in enumerate(sizes) for size in file]
    lengths = np.array([size for _, size in chunks], dtype=np.int64)
    owners = np.array([number for number, _ in chunks], dtype=np.int64)
    return ChunkedFiles(
        lineage=[FileLineage(f"r{(first + i) % 3}", f"/{first + i}", "", "MIT", "Python") for i in range(len(sizes))],
        tokens_N=np.repeat(first + owners, lengths).astype(np.uint16),
        starts_C=np.cumsum(lengths) - lengths,
        lengths_C=lengths,
        bytes_C2=np.stack((first + owners, lengths), axis=1),
        file_of_C=owners,
    )


def described(files: ChunkedFiles) -> list[tuple[str, list[int], list[int]]]:
    """Each chunk: path of its file, tokens, bytes."""
    spans = zip(files.file_of_C, files.starts_C, files.lengths_C, files.bytes_C2.tolist(), strict=True)
    return [(files.lineage[f].path, files.tokens_N[s : s + n].tolist(), b) for f, s, n, b in spans]


@given(SIZES, st.integers(1, 30), st.integers(0, 3))
def test_every_chunk_is_taken_once_and_files_stay_whole(parts: list[list[list[int]]], wanted: int, seed: int) -> None:
    buffer, expected, first = ShuffleBuffer(), [], 0
    for part in parts:
        buffer.add(make_files(part, first))
        expected += described(make_files(part, first))
        first += len(part)
    random = np.random.default_rng(seed)
    found, taken_files = [], []
    while buffer.num_tokens:
        before = buffer.num_tokens
        taken = buffer.sample(wanted, random)
        assert before - buffer.num_tokens == taken.num_tokens >= min(wanted, before)
        found += described(taken)
        taken_files += [file.path for file in taken.lineage if file.path in {path for path, _, _ in described(taken)}]
    assert sorted(found) == sorted(expected)
    assert len(taken_files) == len(set(taken_files))


def test_files_are_taken_by_chance() -> None:
    firsts = set()
    for seed in range(20):
        buffer = ShuffleBuffer()
        buffer.add(make_files([[4]] * 10))
        firsts.add(buffer.sample(4, np.random.default_rng(seed)).lineage[0].path)
    assert len(firsts) > 4


def test_joined_files_hold_the_tokens_of_their_chunks_only() -> None:
    files = make_files([[2, 3], [4], [5]])
    joined = join_files([files.chunks(np.array([False, True, True, False])), make_files([[1]], 3)])
    assert joined.tokens_N.tolist() == [0, 0, 0, 1, 1, 1, 1, 3]
    assert described(joined) == [described(files)[1], described(files)[2], ("/3", [3], [3, 1])]
    assert not np.shares_memory(joined.tokens_N, files.tokens_N)


def test_a_table_numbers_repositories_as_they_come() -> None:
    table = make_files([[1], [2, 3], [4], [5]]).table()
    assert table.lengths_C.tolist() == [1, 2, 3, 4, 5]
    assert table.file_ids_C.tolist() == [0, 1, 1, 2, 3]
    assert table.repository_ids_C.tolist() == [0, 1, 1, 2, 0]


@pytest.mark.parametrize(
    ("licences", "expected"), [((), "no_license"), (("MIT",), "MIT"), (("MIT", "Apache-2.0"), "Apache-2.0 AND MIT")]
)
def test_licences_are_joined(licences: tuple[str, ...], expected: str) -> None:
    file = SourceFile("r", "/p", b"x", "Python", licences, "no_license", "0" * 40)
    assert lineage_of(TextFile(file, "x")) == FileLineage("r", "/p", "0" * 40, expected, "Python")
