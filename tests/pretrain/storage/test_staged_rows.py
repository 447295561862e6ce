"""Staging: the same batches as from local shards, bounded space, reuse after a kill, sharing, and reads that go wrong."""

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mose.errors import MoseError
from mose.tokenizer import Tokenizer
from pretrain.data.loader import BatchPlan, GlobalBatchLoader
from pretrain.data.order import rows_of_run
from pretrain.storage.local_rows import LocalRows, SplitTable
from pretrain.storage.range_rows import LoadedRows, RangeReader, RangeRows, Retry
from pretrain.storage.staged_rows import StagedRows, StagingPlan, clear_abandoned
from pretrain.storage.window_file import RunOrder
from tests.pretrain.data.test_loader import as_rows
from tests.pretrain.stores import Faults, install_faults, upload_folder

SEED, BLOCK, WINDOW, GLOBAL_ROWS = 7, 4, 32, 12
PLENTY = 1 << 24
ROW_BYTES = 48 * 2 + 16
BLOCKS_OF_WINDOW = WINDOW // BLOCK + 1
WINDOW_BYTES = BLOCKS_OF_WINDOW * (BLOCK * ROW_BYTES + 1)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return install_faults(monkeypatch)


@pytest.fixture
def remote(dataset: Path) -> Path:
    return upload_folder(dataset)


@contextlib.contextmanager
def staged(
    dataset: Path, folder: Path, attempts: int = 3, max_bytes: int = PLENTY, batch: int = GLOBAL_ROWS, **plan: int
) -> Iterator[StagedRows]:
    table = SplitTable(dataset, "train")
    order = RunOrder(SEED, len(table), BLOCK, WINDOW)
    settings = StagingPlan(folder, max_bytes, **{"concurrency": 2, **plan})
    rows = StagedRows(RangeReader(table, Retry(attempts, 0.001)), order, settings, batch)
    try:
        yield rows
    finally:
        rows.close()


def plan_for(tokenizer: Tokenizer, global_rows: int = GLOBAL_ROWS) -> BatchPlan:
    ordinary = tokenizer.ordinary_ids()
    return BatchPlan(SEED, global_rows, 3, tokenizer.special, ordinary, block_rows=BLOCK, window_rows=WINDOW)


def shares(rows: StagedRows | LocalRows, tokenizer: Tokenizer, starts: range, global_rows: int = GLOBAL_ROWS) -> list[object]:
    loader = GlobalBatchLoader(rows, plan_for(tokenizer, global_rows))
    return [as_rows(loader.share(start)) for start in starts]


@pytest.fixture
def expected(dataset: Path, tokenizer: Tokenizer) -> Callable[..., list[object]]:
    def of(starts: range, global_rows: int = GLOBAL_ROWS) -> list[object]:
        with contextlib.closing(LocalRows(dataset, "train")) as rows:
            return shares(rows, tokenizer, starts, global_rows)

    return of


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def blocks_left(rows: StagedRows) -> int:
    """Blocks of the open windows that are not staged yet, those that other ranks stage included."""
    with rows._changed:
        return sum(len(window.missing(np.arange(len(window.blocks_J)))) for window in rows._windows.values())


@pytest.mark.parametrize("place", ["store", "disk"])
def test_staged_batches_are_those_of_local_shards_over_epochs(
    place: str, dataset: Path, remote: Path, tokenizer: Tokenizer, tmp_path: Path, expected: Callable[..., list[object]]
) -> None:
    starts = range(0, 360, GLOBAL_ROWS)
    with staged(remote if place == "store" else dataset, tmp_path) as rows:
        assert shares(rows, tokenizer, starts) == expected(starts)


@pytest.mark.parametrize("start", [0, 17, 96, 203, 1000])
def test_a_run_may_begin_anywhere(
    start: int, remote: Path, tokenizer: Tokenizer, tmp_path: Path, expected: Callable[..., list[object]]
) -> None:
    starts = range(start, start + 60, GLOBAL_ROWS)
    with staged(remote, tmp_path) as rows:
        assert shares(rows, tokenizer, starts) == expected(starts)
        back = range(0, 24, GLOBAL_ROWS)
        assert shares(rows, tokenizer, back) == expected(back)


def test_a_batch_larger_than_windows_and_epochs_is_whole(
    remote: Path, tokenizer: Tokenizer, tmp_path: Path, expected: Callable[..., list[object]]
) -> None:
    starts = range(0, 630, 210)
    with staged(remote, tmp_path, batch=210) as rows:
        assert shares(rows, tokenizer, starts, 210) == expected(starts, 210)


def test_staging_raises_the_limit_of_open_files(remote: Path, tmp_path: Path) -> None:
    """A usual soft limit of 1,024 is less than the sockets of rank 0's store at 512 ranks."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        with staged(remote, tmp_path):
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_each_block_is_read_once_in_one_piece(remote: Path, tokenizer: Tokenizer, tmp_path: Path, faults: Faults) -> None:
    """Sequential block reads: of a shard always whole blocks, and nothing twice while its window is in reach."""
    with staged(remote, tmp_path) as rows:
        shares(rows, tokenizer, range(0, 24, GLOBAL_ROWS))
        wait_until(lambda: not blocks_left(rows))
        stride = rows.table.layout.stride
    of_shards = [read for read in faults.reads if read[0].startswith("shard")]
    assert len(of_shards) == len(set(of_shards)) == 2 * BLOCKS_OF_WINDOW - 2
    assert {size for _, _, size in of_shards} == {BLOCK * stride}


def test_the_next_window_is_fetched_before_the_run_gets_to_it(
    remote: Path, tokenizer: Tokenizer, tmp_path: Path, faults: Faults
) -> None:
    with staged(remote, tmp_path) as rows:
        rows.reach(0, GLOBAL_ROWS)
        wait_until(lambda: not blocks_left(rows))
        before = len(faults.reads)
        shares(rows, tokenizer, range(0, 24, GLOBAL_ROWS))
        assert len(faults.reads) == before
    assert {path.name for path in tmp_path.rglob("window-*")} == {"window-000000000", "window-000000001"}


def test_what_is_wanted_first_is_read_first(remote: Path, tmp_path: Path, faults: Faults) -> None:
    with staged(remote, tmp_path, concurrency=1, read_ahead_windows=0) as rows:
        rows.reach(0, GLOBAL_ROWS)
        wait_until(lambda: not blocks_left(rows))
        order = RunOrder(SEED, len(rows), BLOCK, WINDOW)
        blocks = order.blocks(0)[list(dict.fromkeys(order.slots_used(0, 0, WINDOW).tolist()))]
        firsts = [read[0:2] for read in faults.reads if read[0].startswith("shard")]
        table = rows.table
        placed = [(int(np.searchsorted(table.first_rows, row, "right")) - 1, row) for row in (blocks * BLOCK).tolist()]
        wanted = [(f"shard-{s:06d}.tar", int(row - table.first_rows[s]) * table.layout.stride) for s, row in placed]
    assert firsts == wanted


def test_space_is_bounded_and_windows_behind_go(remote: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    limit = 3 * WINDOW_BYTES
    with staged(remote, tmp_path, max_bytes=limit, read_ahead_windows=9) as rows:
        for start in range(0, 600, GLOBAL_ROWS):
            shares(rows, tokenizer, range(start, start + 1))
            names = sorted(path.name for path in tmp_path.rglob("window-*"))
            assert len(names) <= 3
            assert sum(path.stat().st_size for path in tmp_path.rglob("window-*")) <= limit
            epoch, inside = divmod(start, 100)
            assert names[0] == f"window-{epoch * 4 + inside // WINDOW:09d}"


def test_too_little_space_is_refused_with_the_arithmetic(remote: Path, tmp_path: Path) -> None:
    told = rf"max_bytes: leaves 1,000 to .*, expected at least {3 * WINDOW_BYTES:,}: 3 windows of 36 rows x 112 bytes"
    with pytest.raises(MoseError, match=told), staged(remote, tmp_path, max_bytes=1000):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["error", "cut", "damage"])
def test_a_read_that_fails_is_made_again(
    kind: str, remote: Path, tokenizer: Tokenizer, tmp_path: Path, faults: Faults, expected: Callable[..., list[object]]
) -> None:
    setattr(faults, kind, ("shard-", 2))
    with staged(remote, tmp_path) as rows:
        starts = range(0, 96, GLOBAL_ROWS)
        assert shares(rows, tokenizer, starts) == expected(starts)
    assert getattr(faults, kind) == ("shard-", 0)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("error", r"shard-\d+\.tar: rows \d+\.\.\d+: TimeoutError: no answer; read 3 times"),
        ("cut", r"shard-\d+\.tar: \d+ bytes from byte \d+, expected \d+: truncated; read 3 times"),
        ("damage", r"shard-\d+\.tar: row \d+: its tokens differ from the checksum in train/index-\d+\.npy; read 3 times"),
    ],
)
def test_a_read_that_goes_on_failing_names_shard_and_row(
    kind: str, told: str, remote: Path, tokenizer: Tokenizer, tmp_path: Path, faults: Faults
) -> None:
    setattr(faults, kind, ("shard-", -1))
    with staged(remote, tmp_path) as rows, pytest.raises(MoseError, match=told):
        shares(rows, tokenizer, range(1))


def test_a_missing_shard_is_not_asked_for_again(remote: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for path in (remote / "train").glob("shard-*"):
        path.unlink()
    with staged(remote, tmp_path) as rows, pytest.raises(MoseError, match=r"shard-\d+\.tar.*: no such file, but the manifest"):
        shares(rows, tokenizer, range(1))


def test_waits_grow_and_are_not_all_alike() -> None:
    retry = Retry(5, 0.5)
    waits = [[retry.wait_seconds(what, attempt) for attempt in (1, 2, 3)] for what in ("a", "b")]
    for attempt, (one, other) in enumerate(zip(*waits, strict=True)):
        assert one != other
        assert all(0.25 * 2**attempt <= wait <= 0.5 * 2**attempt for wait in (one, other))


def test_a_full_disk_is_one_clear_line(
    remote: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with staged(remote, tmp_path) as rows:
        monkeypatch.setattr("os.pwrite", full)
        with pytest.raises(MoseError, match=r"window-0+: data\.staging: No space left on device, expected room"):
            shares(rows, tokenizer, range(1))


def test_a_file_in_place_of_the_folder_is_refused(remote: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MoseError, match=r"data\.staging\.folder: .*, expected a local folder"), staged(remote, tmp_path / "file"):
        pass


def test_another_order_or_data_set_has_another_folder(remote: Path, dataset: Path, tmp_path: Path) -> None:
    with staged(remote, tmp_path), staged(dataset, tmp_path):
        folders = list(tmp_path.iterdir())
    assert len(folders) == 2


def test_what_ended_runs_left_is_deleted_and_live_ones_are_not(remote: Path, dataset: Path, tmp_path: Path) -> None:
    with staged(remote, tmp_path) as rows:
        rows.reach(0, 1)
    (abandoned,) = tmp_path.iterdir()
    assert (abandoned / "window-000000000").is_file()
    with staged(dataset, tmp_path):
        clear_abandoned(tmp_path)
        (live,) = tmp_path.iterdir()
        assert live != abandoned


# No torch: a process of a reader starts in a second.
PROGRAM = """
import json, sys, time
from pathlib import Path
import numpy as np
import pretrain.storage.range_rows as range_rows
import pretrain.storage.staged_rows as staging
from pretrain.data.order import rows_of_run
from pretrain.storage.local_rows import SplitTable
from pretrain.storage.staged_rows import StagedRows, StagingPlan
from pretrain.storage.window_file import RunOrder
dataset, folder, rank, ranks, delay = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
seed, block, window, batch, end = map(int, sys.argv[6:])
plain, reads = range_rows.read_range, []
def read_range(path, start, length):
    time.sleep(delay); reads.append(path.name); return plain(path, start, length)
range_rows.read_range, staging._PATIENCE_SECONDS = read_range, 60
(folder / f"ready-{rank}").touch()
while len(list(folder.glob("ready-*"))) < ranks:
    time.sleep(0.01)
table = SplitTable(dataset, "train")
reader = range_rows.RangeReader(table, range_rows.Retry(1, 0.0))
order, plan = RunOrder(seed, len(table), block, window), StagingPlan(folder, 1 << 24, 2, 1, rank, ranks)
rows, found = StagedRows(reader, order, plan, batch), []
for start in range(0, end, batch):
    rows.reach(start, batch)
    numbers, _ = rows_of_run(seed, start, batch, len(table), block, window)
    rows.labels(numbers)
    found.append(int(rows.tokens(numbers).astype(np.int64).sum()))
rows.close()
print(json.dumps([len([name for name in reads if name.startswith("shard")]), found]))
"""


def start_reader(dataset: Path, folder: Path, rank: int, ranks: int, delay: float) -> subprocess.Popen[str]:
    numbers = (rank, ranks, delay, SEED, BLOCK, WINDOW, GLOBAL_ROWS, 96)
    words = [sys.executable, "-c", PROGRAM, str(dataset), str(folder), *map(str, numbers)]
    root = str(Path(__file__).parents[3])
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": root})


def test_killed_mid_way_and_restarted_goes_on_with_what_is_there(
    dataset: Path, remote: Path, tokenizer: Tokenizer, tmp_path: Path, expected: Callable[..., list[object]]
) -> None:
    reader = start_reader(dataset, tmp_path, 0, 1, 0.05)

    def blocks_there() -> int:
        return sum(path.read_bytes()[-BLOCKS_OF_WINDOW + 1 :].count(1) for path in tmp_path.rglob("window-000000000"))

    wait_until(lambda: blocks_there() >= 3, 60)
    reader.send_signal(signal.SIGKILL)
    reader.communicate()
    kept = blocks_there()
    assert kept >= 3
    table = SplitTable(dataset, "train")
    reads: list[int] = []
    range_reader = RangeReader(table, Retry(1, 0.0))
    plain = range_reader.read
    range_reader.read = lambda first, count: (reads.append(first), plain(first, count))[1]  # type: ignore[method-assign]
    rows = StagedRows(range_reader, RunOrder(SEED, len(table), BLOCK, WINDOW), StagingPlan(tmp_path, PLENTY, 2, 0), GLOBAL_ROWS)
    starts = range(0, 24, GLOBAL_ROWS)
    assert shares(rows, tokenizer, starts) == expected(starts)
    rows.close()
    assert 0 < len(reads) <= WINDOW // BLOCK - kept


def test_two_processes_share_a_folder_and_the_work(dataset: Path, tmp_path: Path) -> None:
    readers = [start_reader(dataset, tmp_path, rank, 2, 0.02) for rank in range(2)]
    results = [json.loads(reader.communicate()[0]) for reader in readers]
    with contextlib.closing(LocalRows(dataset, "train")) as rows:
        batches = [rows_of_run(SEED, start, GLOBAL_ROWS, len(rows), BLOCK, WINDOW)[0] for start in range(0, 96, GLOBAL_ROWS)]
        expected = [int(rows.tokens(numbers).astype(np.int64).sum()) for numbers in batches]
    assert [found for _, found in results] == [expected, expected]
    # Of the first epoch's 25 blocks and those of the window after it, each alone would read all.
    assert sum(count for count, _ in results) < 1.7 * (100 + WINDOW) / BLOCK


def test_a_rank_whose_neighbours_do_not_read_reads_all_itself(
    remote: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Callable[..., list[object]]
) -> None:
    monkeypatch.setattr("pretrain.storage.staged_rows._PATIENCE_SECONDS", 0.02)
    starts = range(0, 48, GLOBAL_ROWS)
    with staged(remote, tmp_path, local_rank=1, local_ranks=4) as rows:
        assert shares(rows, tokenizer, starts) == expected(starts)


def test_no_thread_is_left(remote: Path, tokenizer: Tokenizer, tmp_path: Path, faults: Faults) -> None:
    threads, children = threading.active_count(), multiprocessing.active_children()
    faults.error = ("", 0)
    with staged(remote, tmp_path) as rows:
        shares(rows, tokenizer, range(1))
        assert threading.active_count() > threads
    assert threading.active_count() == threads
    assert multiprocessing.active_children() == children


def test_rows_by_ranges_and_loaded_rows_are_the_rows(remote: Path, dataset: Path) -> None:
    asked = np.array([9, 3, 4, 5, 24, 23, 99, 3])
    with contextlib.closing(LocalRows(dataset, "train")) as plain:
        reader = RangeReader(SplitTable(remote, "train"), Retry(1, 0.0))
        for rows in (RangeRows(reader), LoadedRows(reader, 100)):
            assert np.array_equal(rows.tokens(asked), plain.tokens(asked))
            assert rows.labels(asked).num_tokens.tolist() == plain.labels(asked).num_tokens.tolist()
            assert len(rows) == 100
    assert len(LoadedRows(reader, 30)) == 30


def test_a_store_needs_a_staging_folder(remote: Path) -> None:
    with pytest.raises(MoseError, match=r"not a local folder; expected data\.staging\.folder"):
        LocalRows(remote, "train")
