"""The loader: parity with webdataset, shares that only `consumed_rows` decides, micro-batches, bad data sets, prefetching."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset
from numpy.typing import NDArray

from mose.dataset.manifest import MANIFEST_NAME, read_manifest
from mose.dataset.packed_sequence import TOKENS
from mose.dataset.row_index import INDEX_OFFSET
from mose.dataset.shard_format import RowLabels, ShardReader
from mose.errors import MoseError
from mose.tokenizer import Tokenizer, load_tokenizer
from pretrain.data import prefetch
from pretrain.data.loader import BatchPlan, GlobalBatchLoader, validation_batches
from pretrain.data.masking import mask_rows
from pretrain.data.micro_batch import IGNORED_LABEL, MicroBatch
from pretrain.data.order import rows_of_run
from pretrain.data.prefetch import Prefetcher
from pretrain.data.rows import Rows
from pretrain.storage.local_rows import LocalRows
from tests.datasets import make_dataset

GLOBAL_ROWS = 24
SEED = 7


@pytest.fixture
def rows(dataset: Path, tokenizer: Tokenizer) -> Iterator[LocalRows]:
    opened = LocalRows(dataset, "train", tokenizer.fingerprint())
    yield opened
    opened.close()


def plan_for(
    tokenizer: Tokenizer, data_rank: int = 0, data_ranks: int = 1, micro_batch_rows: int = 4, global_rows: int = GLOBAL_ROWS
) -> BatchPlan:
    special, ordinary = tokenizer.special, tokenizer.ordinary_ids()
    return BatchPlan(SEED, global_rows, micro_batch_rows, special, ordinary, data_rank, data_ranks, block_rows=4)


def read(rows: Rows, numbers: NDArray[np.int64]) -> tuple[TOKENS, RowLabels]:
    return rows.tokens(numbers), rows.labels(numbers)


def as_rows(batches: list[MicroBatch]) -> list[tuple[int, bytes]]:
    """Each row of these micro-batches, by number: input ids, positions, places and labels of masked tokens, label."""
    found = []
    for batch in batches:
        bounds = batch.cu_seqlens.tolist()
        for b, number in enumerate(batch.row_numbers_B.tolist()):
            row = slice(bounds[b], bounds[b + 1])
            inside = (batch.masked_N_indices >= row.start) & (batch.masked_N_indices < row.stop)
            parts = (
                batch.input_ids_N[row],
                batch.positions_N[row],
                batch.masked_N_indices[inside] - row.start,
                batch.labels_M[inside],
                batch.mixed_B[b],
            )
            found.append((number, b"/".join(part.numpy().tobytes() for part in parts)))
    return sorted(found)


def numbers_of(batches: list[MicroBatch]) -> list[int]:
    return [number for number, _ in as_rows(batches)]


def test_rows_equal_those_that_webdataset_decodes(dataset: Path, rows: LocalRows) -> None:
    shards = [str(dataset / shard.path) for shard in read_manifest(dataset).shards("train")]
    assert len(shards) > 1
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    tokens_RT, labels = read(rows, np.arange(len(rows)))
    assert len(samples) == len(rows) == 100
    assert np.array_equal(np.stack([sample["npy"] for sample in samples]), tokens_RT)
    for name in ("mixed", "num_tokens", "num_snippets"):
        assert [sample["json"][name] for sample in samples] == getattr(labels, name).tolist()


def test_rows_come_in_the_order_asked_for(rows: LocalRows) -> None:
    everything, all_labels = read(rows, np.arange(len(rows)))
    asked = np.random.default_rng(0).integers(0, len(rows), 60)
    tokens_RT, labels = read(rows, asked)
    assert np.array_equal(tokens_RT, everything[asked])
    assert np.array_equal(labels.num_tokens, all_labels.num_tokens[asked])


@pytest.mark.parametrize(("data_ranks", "micro_batch_rows"), [(1, 1), (1, 8), (2, 4), (3, 2), (5, 2), (4, 6), (24, 1)])
@pytest.mark.parametrize("consumed_rows", [0, 24, 96, 480])
@pytest.mark.parametrize("equal", [False, True])
def test_the_global_batch_is_the_same_however_it_is_dealt(
    rows: LocalRows, tokenizer: Tokenizer, data_ranks: int, micro_batch_rows: int, consumed_rows: int, equal: bool
) -> None:
    reference = GlobalBatchLoader(rows, plan_for(tokenizer, micro_batch_rows=GLOBAL_ROWS)).share(consumed_rows)
    union, numbers = [], set()
    for rank in range(data_ranks):
        plan = plan_for(tokenizer, rank, data_ranks, micro_batch_rows)
        share = GlobalBatchLoader(rows, dataclasses.replace(plan, equal_micro_batches=equal)).share(consumed_rows)
        numbers.add(len(share))
        assert all(batch.num_tokens <= 48 * micro_batch_rows for batch in share)
        union += [batch for batch in share if batch.num_rows]
    assert not equal or len(numbers) == 1
    assert as_rows(union) == as_rows(reference)
    slots = [sum(batch.padded_slots + batch.num_tokens for batch in batches) for batches in (union, reference)]
    assert slots[0] <= slots[1] == GLOBAL_ROWS * 48


def test_every_row_is_seen_once_an_epoch_and_masked_anew_in_the_next(
    dataset: Path, rows: LocalRows, tokenizer: Tokenizer
) -> None:
    loader = GlobalBatchLoader(rows, plan_for(tokenizer, global_rows=20))
    epochs = [as_rows([batch for k in range(5) for batch in loader.share(100 * epoch + 20 * k)]) for epoch in range(2)]
    real = sorted(set(range(100)) - {3, 50})
    assert [[number for number, _ in epoch] for epoch in epochs] == [real, real]
    assert len(set(epochs[0]) & set(epochs[1])) <= 2


def test_resume_is_the_share_at_consumed_rows_also_at_another_size(dataset: Path, tokenizer: Tokenizer) -> None:
    """accelerate#2016, streaming#437: a resumed loader must neither replay nor skip rows, also past the first epoch."""
    with_rows = LocalRows(dataset, "train")
    uninterrupted = GlobalBatchLoader(with_rows, plan_for(tokenizer))
    expected = [as_rows(uninterrupted.share(consumed)) for consumed in range(0, 240, GLOBAL_ROWS)]
    for step in range(5, 10):
        reopened = LocalRows(dataset, "train")
        shares = [GlobalBatchLoader(reopened, plan_for(tokenizer, rank, 2, 2)).share(step * GLOBAL_ROWS) for rank in range(2)]
        assert as_rows([batch for share in shares for batch in share if batch.num_rows]) == expected[step]
        reopened.close()
    with_rows.close()


def test_micro_batches_are_the_stored_rows_without_padding(rows: LocalRows, tokenizer: Tokenizer) -> None:
    plan = plan_for(tokenizer)
    numbers, epochs = rows_of_run(plan.seed, 96, GLOBAL_ROWS, len(rows), plan.block_rows, plan.window_rows)
    assert set(epochs) == {0, 1}, "this batch crosses the end of an epoch"
    assert len(set(numbers)) == GLOBAL_ROWS, "no row of it is in both epochs"
    epoch_of = dict(zip(numbers.tolist(), epochs.tolist(), strict=True))
    for batch in GlobalBatchLoader(rows, plan).share(96):
        chosen = batch.row_numbers_B.numpy()
        tokens_RT, labels = read(rows, chosen)
        masked = mask_rows(
            tokens_RT,
            labels.num_tokens,
            chosen,
            np.array([epoch_of[int(r)] for r in chosen]),
            SEED,
            tokenizer.special,
            tokenizer.ordinary_ids(),
        )
        seen_RT, selected_RT = tokens_RT.copy(), np.zeros(tokens_RT.shape, dtype=bool)
        seen_RT.reshape(-1)[masked.places_M], selected_RT.reshape(-1)[masked.places_M] = masked.seen_M, True
        stored = [row[-n:] for row, n in zip(tokens_RT, labels.num_tokens, strict=True)]
        seen = [row[-n:] for row, n in zip(seen_RT, labels.num_tokens, strict=True)]
        selected = np.concatenate([row[-n:] for row, n in zip(selected_RT, labels.num_tokens, strict=True)])
        assert np.array_equal(batch.input_ids_N, np.concatenate(seen))
        assert np.array_equal(batch.positions_N, np.concatenate([np.arange(n) for n in labels.num_tokens]))
        assert np.diff(batch.cu_seqlens).tolist() == labels.num_tokens.tolist()
        assert np.array_equal(batch.masked_N_indices, np.flatnonzero(selected))
        assert np.array_equal(batch.labels_M, np.concatenate(stored)[selected])
        assert batch.mixed_B.tolist() == labels.mixed.tolist()
        assert batch.max_length == labels.num_tokens.max()
        assert (batch.num_rows, batch.num_tokens, batch.num_masked) == (len(chosen), labels.num_tokens.sum(), selected.sum())
        assert (batch.input_ids_N[batch.cu_seqlens[1:].long() - 1] == tokenizer.special.cls).all()


def test_types_are_those_that_the_model_takes(rows: LocalRows, tokenizer: Tokenizer) -> None:
    batch = GlobalBatchLoader(rows, plan_for(tokenizer)).share(0)[0]
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert len(tensors) == 7
    assert all(tensor.dtype == (torch.int32 if name == "cu_seqlens" else torch.int64) for name, tensor in tensors.items())
    moved = batch.to(torch.device("meta"))
    assert moved.labels_M.device.type == "meta"
    assert moved.max_length == batch.max_length


def test_a_micro_batch_of_emptied_rows_is_a_placeholder_that_adds_nothing(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, rows=6, empty_rows=tuple(range(6)))
    rows = LocalRows(dataset, "train")
    tokenizer = load_tokenizer(dataset)
    (batch,) = GlobalBatchLoader(rows, plan_for(tokenizer, micro_batch_rows=6, global_rows=6)).share(0)
    assert (batch.num_rows, batch.num_tokens, batch.num_masked, batch.padded_slots) == (0, 0, 0, 6 * 32)
    assert batch.input_ids_N.tolist() == [tokenizer.special.sep, tokenizer.special.cls]
    assert batch.cu_seqlens.tolist() == [0, 2]
    logits = torch.zeros(1, 2, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, batch.mixed_B, reduction="sum")
    assert loss.item() == 0
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED_LABEL
    rows.close()


@pytest.mark.parametrize("data_ranks", [1, 2, 3, 4])
def test_validation_is_every_held_out_row_once_with_equal_turns(dataset: Path, tokenizer: Tokenizer, data_ranks: int) -> None:
    rows = LocalRows(dataset, "held_out")
    by_rank = [list(validation_batches(rows, plan_for(tokenizer, rank, data_ranks, 4, 48))) for rank in range(data_ranks)]
    assert {len(batches) for batches in by_rank} == {-(-3 // data_ranks)}
    real = [batch for batches in by_rank for batch in batches if batch.num_rows]
    whole = list(validation_batches(rows, plan_for(tokenizer, micro_batch_rows=10, global_rows=10)))
    assert as_rows(real) == as_rows(whole)
    assert numbers_of(real) == list(range(10))
    limited = list(validation_batches(rows, plan_for(tokenizer), max_rows=5))
    assert numbers_of(limited) == list(range(5))
    rows.close()


def test_open_shards_are_bounded(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.storage.local_rows.raise_descriptor_limit", lambda: 8)
    closed = []
    monkeypatch.setattr(ShardReader, "close", lambda reader: closed.append(reader.path.name))
    rows = LocalRows(dataset, "train")
    expected = [read(rows, np.array([row]))[0] for row in (0, 30, 60, 99, 0)]
    assert closed == [f"shard-{number:06d}.tar" for number in (0, 1, 2)]
    assert np.array_equal(expected[0], expected[-1])


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Opening and reading a split of 14 MB, all of it in shuffled order, adds far less than 14 MB to the process's own memory."""
    dataset = make_dataset(tmp_path, rows=2500, sequence_length=2048, rows_per_shard=1000, held_out_rows=1)
    program = (
        "import sys, numpy as np; from pathlib import Path; from pretrain.storage.local_rows import LocalRows\n"
        "def private(): return int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1])\n"
        "before = private(); rows = LocalRows(Path(sys.argv[1]), 'train')\n"
        "for part in np.random.default_rng(0).permutation(len(rows)).reshape(-1, 20): rows.tokens(part)\n"
        "print(private() - before)"
    )
    grown = subprocess.run([sys.executable, "-c", program, str(dataset)], check=True, capture_output=True, text=True).stdout
    assert int(grown) < 4000


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def test_missing_shard_is_named(copy: Path) -> None:
    (copy / "train" / "shard-000002.tar").unlink()
    rows = LocalRows(copy, "train")
    rows.tokens(np.arange(48))
    with pytest.raises(MoseError, match=r"shard-000002\.tar: no such shard, but the manifest lists it"):
        rows.tokens(np.arange(100))


def test_truncated_shard_is_named(copy: Path) -> None:
    path = copy / "train" / "shard-000001.tar"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 512)
    with pytest.raises(MoseError, match=rf"shard-000001\.tar: {size - 512} bytes, its manifest says {size}"):
        LocalRows(copy, "train").tokens(np.array([30]))


def test_first_shard_is_looked_at_when_the_data_set_is_opened(copy: Path) -> None:
    (copy / "train" / "shard-000000.tar").unlink()
    with pytest.raises(MoseError, match=r"shard-000000\.tar: no such shard"):
        LocalRows(copy, "train")


def test_manifest_that_contradicts_itself_is_named(copy: Path) -> None:
    values = json.loads((copy / MANIFEST_NAME).read_text())
    values["splits"]["train"][0]["rows"] += 1
    (copy / MANIFEST_NAME).write_text(json.dumps(values))
    with pytest.raises(
        MoseError, match=r"manifest\.json: splits\.train: num_bytes of train/shard-000000\.tar: \d+, expected \d+ for 25 rows"
    ):
        LocalRows(copy, "train")


def test_tokenizer_of_other_rows_is_refused(dataset: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(MoseError, match=rf"tokenizer_fingerprint: {tokenizer.fingerprint()}, expected .* feed$"):
        LocalRows(dataset, "train", "feed")


def test_unknown_split_is_refused(dataset: Path) -> None:
    with pytest.raises(MoseError, match="split 'test' has no rows"):
        LocalRows(dataset, "test")


@pytest.mark.parametrize(
    ("name", "offset", "damage", "message"),
    [
        ("shard-000000.tar", "token", b"\xff\xff", r"train: token id 65535 in one of rows 0\.\.99, expected ids below voc.* 320"),
        ("index-000000.npy", "length", b"\xe7\x03", r"train: num_tokens 999 of a row, expected at most 48"),
        ("index-000000.npy", "header", b"?", r"index-000000\.npy: not a readable index of rows"),
    ],
)
def test_damaged_row_is_found_when_it_is_read(copy: Path, name: str, offset: str, damage: bytes, message: str) -> None:
    places = {"token": read_manifest(copy).layout().token_offset, "length": INDEX_OFFSET, "header": 0}
    with (copy / "train" / name).open("r+b") as file:
        file.seek(places[offset])
        file.write(damage)
    with pytest.raises(MoseError, match=message), contextlib.closing(LocalRows(copy, "train")) as rows:
        read(rows, np.arange(100))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"global_batch_rows": 0}, "global_batch_rows"),
        ({"micro_batch_tokens": -1}, "micro_batch_tokens"),
        ({"micro_batch_rows": 0}, "micro_batch_rows"),
        ({"data_rank": 2, "data_ranks": 2}, "data_rank"),
        ({"masked_share": 1.0}, "masked_share"),
    ],
)
def test_bad_plan_names_its_field(tokenizer: Tokenizer, changes: dict[str, int], field: str) -> None:
    with pytest.raises(MoseError, match=f"^{field}: "):
        dataclasses.replace(plan_for(tokenizer), **changes)


def test_prefetched_shares_are_the_loaders_own(dataset: Path, rows: LocalRows, tokenizer: Tokenizer) -> None:
    plain = LocalRows(dataset, "train")
    expected = [as_rows(GlobalBatchLoader(plain, plan_for(tokenizer)).share(step * GLOBAL_ROWS)) for step in range(2, 9)]
    threads = threading.active_count()
    with Prefetcher(GlobalBatchLoader(rows, plan_for(tokenizer)), consumed_rows=2 * GLOBAL_ROWS) as prefetcher:
        assert [as_rows(prefetcher.take()) for _ in range(2, 9)] == expected
    assert threading.active_count() == threads
    plain.close()


def test_prefetcher_raises_in_the_step_that_it_concerns(copy: Path, tokenizer: Tokenizer) -> None:
    rows = LocalRows(copy, "train")
    shutil.rmtree(copy / "train")
    with (
        Prefetcher(GlobalBatchLoader(rows, plan_for(tokenizer)), 0) as prefetcher,
        pytest.raises(MoseError, match="no such index"),
    ):
        prefetcher.take()


def test_prefetcher_reports_how_long_it_waited(rows: LocalRows, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, share = threading.Event(), GlobalBatchLoader.share

    def share_of_an_open_gate(loader: GlobalBatchLoader, consumed: int) -> list[MicroBatch]:
        assert gate.wait(10), "the clock was first read after the share"
        return share(loader, consumed)

    def clock() -> float:
        # The first reading opens the gate, so the share is read between the two.
        seconds = 13.0 if gate.is_set() else 10.0
        gate.set()
        return seconds

    monkeypatch.setattr(GlobalBatchLoader, "share", share_of_an_open_gate)
    monkeypatch.setattr(prefetch, "time", SimpleNamespace(perf_counter=clock))
    with Prefetcher(GlobalBatchLoader(rows, plan_for(tokenizer)), 0) as prefetcher:
        prefetcher.take()
        assert prefetcher.last_wait_seconds == 3.0
