"""Packing as a pure function: every chunk at most once, rows fit, labels say what rows hold, equal seeds give equal rows."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.packing.config import PackingConfig, largest_chunk
from data_prep.packing.next_sentence import _across
from data_prep.packing.pack import chunk_limits, pack, packer_of
from data_prep.packing.rows import ChunkTable, LabelBalance, Packer, Packing, RowCounts
from mose.config import load_config, save_config
from mose.dataset.packed_sequence import packed_length
from mose.dataset.packing_modes import PackingMode
from mose.errors import MoseError
from mose.seeding import generator

LENGTH = 64
MODES = tuple(PackingMode)


def config_of(mode: str, **changes: int) -> PackingConfig:
    return PackingConfig(**{"mode": PackingMode(mode), "sequence_length": LENGTH, "pool_tokens": LENGTH, **changes}).resolve()  # type: ignore[arg-type]


@st.composite
def tables(draw: st.DrawFn, mode: str) -> ChunkTable:
    """Files of some repositories, cut as the mode cuts them (anywhere: packing does not see line ends)."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 150), st.integers(0, 5)), max_size=40))
    return cut_table(sizes, config_of(mode))


def cut_table(files: list[tuple[int, int]], config: PackingConfig) -> ChunkTable:
    lengths: list[int] = []
    file_ids: list[int] = []
    repository_ids: list[int] = []
    for number, (size, repository) in enumerate(files):
        limit = int(chunk_limits(np.array([size]), config)[0])
        chunks = [min(limit, size - start) for start in range(0, size, limit)]
        lengths += chunks
        file_ids += [number] * len(chunks)
        repository_ids += [repository] * len(chunks)
    return table_of(lengths, file_ids, repository_ids)


def table_of(lengths: list[int], file_ids: list[int], repository_ids: list[int]) -> ChunkTable:
    return ChunkTable(*(np.array(column, dtype=np.int64) for column in (lengths, file_ids, repository_ids)))


@dataclass(frozen=True)
class Row:
    """One row of a packing, as tests look at it."""

    chunks: list[int]
    mixed: int
    cut_tokens: int


def rows_of(packing: Packing) -> list[Row]:
    firsts = packing.first_snippets()
    spans = zip(firsts.tolist(), packing.snippets_R.tolist(), strict=True)
    chunks = [packing.chunks_S[first : first + count].tolist() for first, count in spans]
    return [Row(*row) for row in zip(chunks, packing.mixed_R.tolist(), packing.cut_tokens_R.tolist(), strict=True)]


def same(one: Packing, other: Packing) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in Packing.__dataclass_fields__)


def check(table: ChunkTable, packing: Packing, config: PackingConfig) -> None:
    """What holds in every mode."""
    used = Counter(chunk for row in rows_of(packing) for chunk in row.chunks)
    used.update(packing.dropped_chunks.tolist())
    assert used == Counter(range(len(table.lengths_C)))
    for row in rows_of(packing):
        assert row.chunks
        assert 3 <= packed_length([table.lengths_C[chunk] for chunk in row.chunks]) - row.cut_tokens <= config.sequence_length
        assert row.mixed == (len({table.repository_ids_C[chunk] for chunk in row.chunks}) == 2)
        assert len({table.repository_ids_C[chunk] for chunk in row.chunks}) <= 2


@pytest.mark.parametrize("mode", MODES)
def test_every_chunk_once_rows_fit_and_labels_say_what_they_hold(mode: str) -> None:
    @given(tables(mode), st.integers(0, 3))
    def holds(table: ChunkTable, seed: int) -> None:
        config = config_of(mode)
        packing = pack(table, seed, config)
        check(table, packing, config)
        assert same(pack(table, seed, config), packing)

    holds()


@given(tables("dense"), st.integers(0, 3))
def test_dense_drops_nothing_and_alternates_strictly(table: ChunkTable, seed: int) -> None:
    packing = pack(table, seed, config_of("dense"))
    assert not len(packing.dropped_chunks)
    for row in rows_of(packing):
        repositories = [table.repository_ids_C[chunk] for chunk in row.chunks]
        assert row.cut_tokens == 0
        if row.mixed:
            assert repositories[0] != repositories[1]
            assert repositories[2:] == repositories[:-2]


@given(tables("dense"), st.integers(0, 3))
def test_dense_leaves_an_unmixed_row_of_one_chunk_only_when_its_repository_has_no_other(table: ChunkTable, seed: int) -> None:
    unused = Counter(table.repository_ids_C.tolist())
    for row in rows_of(pack(table, seed, config_of("dense"))):
        for chunk in row.chunks:
            unused[table.repository_ids_C[chunk]] -= 1
        if len(row.chunks) == 1:
            assert unused[table.repository_ids_C[row.chunks[0]]] == 0


@given(tables("nsp"), st.integers(0, 3))
def test_nsp_rows_are_a_text_with_its_continuation_or_two_repositories(table: ChunkTable, seed: int) -> None:
    for row in rows_of(pack(table, seed, config_of("nsp"))):
        first, second = row.chunks
        if not row.mixed:
            assert second == first + 1
            assert table.file_ids_C[first] == table.file_ids_C[second]


@given(tables("faithful"), st.integers(0, 3))
def test_faithful_cuts_no_more_than_the_token_too_many(table: ChunkTable, seed: int) -> None:
    packing = pack(table, seed, config_of("faithful"))
    for row in rows_of(packing):
        whole = packed_length([table.lengths_C[chunk] for chunk in row.chunks])
        assert row.cut_tokens == max(0, whole - LENGTH) <= 1
    longer = {chunk for chunk, length in enumerate(table.lengths_C) if length + 1 > LENGTH}
    assert longer <= set(packing.dropped_chunks.tolist())
    assert packing.trailing_separators <= packing.rows


def test_faithful_is_the_printed_loop() -> None:
    # One repository, so the row is filled until the first misfit: 20 + 20 fit with their <sep>, the third of 30 is lost.
    table = table_of([30, 30, 30], [0, 1, 2], [0, 0, 0])
    packing = pack(table, 0, config_of("faithful"))
    assert [len(row.chunks) for row in rows_of(packing)] == [2]
    assert len(packing.dropped_chunks) == 1
    assert packing.trailing_separators == 1
    # <sep> 31 <sep> 31 is 64 tokens: the loop takes it, and <cls> would be the 65th.
    packing = pack(table_of([31, 31], [0, 1], [0, 0]), 0, config_of("faithful"))
    assert [(len(row.chunks), row.cut_tokens) for row in rows_of(packing)] == [(2, 1)]
    assert packing.trailing_separators == 0
    # A last snippet of the one token that is cut leaves nothing of itself.
    packing = pack(table_of([61, 1], [0, 1], [0, 0]), 1, config_of("faithful"))
    assert sorted(row.cut_tokens for row in rows_of(packing)) in ([0], [1])
    check(table_of([61, 1], [0, 1], [0, 0]), packing, config_of("faithful"))


def uneven(repositories: int = 23, seed: int = 0, scale: int = 3000) -> ChunkTable:
    """Repositories of very different sizes (the largest a quarter of all), most tokens in long files, as real ones."""
    random = generator(seed, "uneven")
    config = PackingConfig().resolve()
    files = []
    for repository in range(repositories):
        budget = int(scale * 1000 / (repository + 1))
        while budget > 0:
            size = int(min(random.lognormal(6.5, 1.6) + 1, 60_000))
            files.append((size, repository))
            budget -= size
    return cut_table(files, config)


def counts_of(table: ChunkTable, packing: Packing) -> RowCounts:
    counts = RowCounts()
    counts.add(packing, table)
    return counts


def test_dense_figures_on_repositories_of_very_different_sizes() -> None:
    table = uneven()
    config = PackingConfig().resolve()
    packing = pack(table, 5, config)
    counts = counts_of(table, packing)
    assert counts.rows > 3000
    assert counts.tokens / counts.rows / 2048 >= 0.95
    assert 0.48 <= counts.mixed_rows / counts.rows <= 0.52
    assert counts.single_snippet_rows / counts.rows <= 0.01
    assert counts.single_file_rows / (counts.rows - counts.mixed_rows) <= 0.05
    # The labels stay balanced to the end, when few repositories are left.
    tail = packing.mixed_R[-counts.rows // 10 :]
    assert 0.4 <= np.mean(tail) <= 0.6


def test_looking_ahead_fills_rows() -> None:
    table = uneven(scale=300)
    fills = []
    for look_ahead in (1, 32):
        counts = counts_of(table, pack(table, 0, PackingConfig(look_ahead=look_ahead).resolve()))
        fills.append(counts.tokens / counts.rows / 2048)
    assert fills[0] < 0.93 < fills[1]


def test_one_repository_gives_unmixed_rows_only() -> None:
    table = cut_table([(500, 0)] * 20, config_of("dense"))
    assert not pack(table, 0, config_of("dense")).mixed_R.any()


def test_another_seed_gives_other_rows() -> None:
    table = uneven(scale=20)
    assert not same(pack(table, 0, PackingConfig().resolve()), pack(table, 1, PackingConfig().resolve()))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_mixed_share_is_what_was_asked(share: float) -> None:
    config = PackingConfig(mixed_share=share).resolve()
    table = cut_table([(2000, repository) for repository in range(8) for _ in range(100)], config)
    assert abs(pack(table, 0, config).mixed_R.mean() - share) <= 0.02


def test_a_balance_makes_up_for_earlier_pools() -> None:
    config = config_of("dense")
    balance = LabelBalance(0.5)
    alone = pack(cut_table([(500, 0)] * 20, config), 0, config, balance)
    together = pack(cut_table([(500, i % 4) for i in range(40)], config), 1, config, balance)
    assert not alone.mixed_R.any()
    assert abs(np.concatenate((alone.mixed_R, together.mixed_R)).mean() - 0.5) <= 0.03


def test_counts_say_what_rows_hold() -> None:
    table = table_of([5, 6, 7, 200], [0, 0, 1, 2], [0, 0, 1, 1])
    packing = pack(table, 0, config_of("faithful"))
    counts = counts_of(table, packing)
    kept = [chunk for row in rows_of(packing) for chunk in row.chunks]
    assert counts.text_tokens == 218
    assert counts.text_tokens - counts.dropped_tokens == table.lengths_C[kept].sum()
    assert counts.tokens == table.lengths_C[kept].sum() + len(kept) + packing.rows


def test_a_hundred_thousand_chunks_take_a_second() -> None:
    random = generator(0, "speed")
    files = np.sort(random.integers(0, 30_000, size=100_000))
    table = ChunkTable(random.integers(1, 1023, size=100_000), files, files // 100)
    start = time.process_time()
    packing = pack(table, 0, PackingConfig().resolve())
    assert time.process_time() - start < 4  # 0.4 s on an idle core
    assert len(packing.chunks_S) == 100_000


@pytest.mark.parametrize("sizes", [(5000, 5000), (9000, 500, 500), (4000, 4000, 30, 30, 30)])
def test_few_repositories_of_which_one_holds_most_are_drawn_quickly(sizes: tuple[int, ...]) -> None:
    lengths = [900] * sum(sizes)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    start = time.process_time()
    packing = pack(ChunkTable(np.array(lengths), np.arange(len(lengths)), owners), 0, PackingConfig().resolve())
    assert time.process_time() - start < 2  # 0.1 s on an idle core; a search through all chunks at each row takes minutes
    assert packing.mixed_R.mean() > 0.15


def test_a_repository_of_one_small_chunk_gets_a_partner_that_fills_the_row() -> None:
    # The row of repository 1 is `a, its chunk, b`; b is the largest that fits, unless a was.
    table = table_of([*[3] * 10, 40, 5], [*range(12)], [0] * 11 + [1])
    for seed in range(8):
        rows = rows_of(pack(table, seed, config_of("dense", mixed_share=1)))
        assert [10 in row.chunks for row in rows if 11 in row.chunks] == [True]


@pytest.mark.parametrize("mode", ["dense", "faithful"])
def test_a_row_that_ended_before_the_second_repository_entered_is_not_mixed(mode: str) -> None:
    """The label says what the row holds, not what was drawn for it: two chunks of 40 tokens do not fit a row of 64 slots."""
    table = table_of([40, 40, 40], [0, 1, 2], [0, 1, 2])
    for seed in range(8):
        rows = rows_of(pack(table, seed, config_of(mode, mixed_share=1)))
        assert [(len(row.chunks), row.mixed) for row in rows] == [(1, 0)] * len(rows)
        assert rows


def test_two_of_the_largest_chunks_fit() -> None:
    assert largest_chunk(2048) == 1022
    for length in range(16, 100):
        chunk = largest_chunk(length)
        assert packed_length([chunk, chunk]) <= length < packed_length([chunk + 1, chunk + 1])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sequence_length": 8}, "packing.sequence_length: is 8, expected 16"),
        ({"piece_tokens": 1023}, "packing.piece_tokens: is 1023, expected at most 1022"),
        ({"look_ahead": 0}, "packing.look_ahead: is 0"),
        ({"mixed_share": 1.5}, "packing.mixed_share: is 1.5"),
        ({"pool_tokens": 10}, "packing.pool_tokens: is 10"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes: dict[str, int], expected: str) -> None:
    with pytest.raises(MoseError, match=expected):
        PackingConfig(**changes)


@pytest.mark.parametrize("mode", PackingMode)
def test_a_config_of_each_mode_reads_back(mode: PackingMode, tmp_path: Path) -> None:
    config = load_config(PackingConfig, None, {"mode": str(mode)})
    save_config(config, tmp_path / "config.yaml")
    assert f"mode: {mode}\n" in (tmp_path / "config.yaml").read_text()
    assert load_config(PackingConfig, tmp_path / "config.yaml") == config
    assert config.mode is mode


@pytest.mark.parametrize("mode", PackingMode)
def test_each_mode_has_a_packer(mode: PackingMode) -> None:
    assert isinstance(packer_of(mode), Packer)


def test_chunks_of_repositories_that_alternate_all_find_a_partner() -> None:
    """Paired by repository, not by position: two chunks half the list apart are here of one repository."""
    pairs, alone = _across(list(range(8)), [0, 1] * 4, np.random.default_rng(0))
    assert alone == []
    assert sorted(chunk for pair in pairs for chunk in pair) == list(range(8))
    assert all(first % 2 != second % 2 for first, second in pairs)
