"""From packed shards to a rank's share of a global batch; the only state is how many rows were consumed before it.

Letters: G rows of the global batch, R rows, T slots of a stored row, B rows of a micro-batch, N real tokens, M masked tokens.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mose.errors import MoseError
from mose.manifest import MANIFEST_NAME, ShardEntry, read_manifest
from mose.packed_sequence import TOKENS, SpecialTokens
from mose.shard_format import RowLabels, ShardReader
from pretrain.dealing import deal
from pretrain.masking import MASKED_SHARE, Masked, mask_rows
from pretrain.order import BLOCK_ROWS, WINDOW_ROWS, rows_of_run

INT64_ARRAY = NDArray[np.int64]

# torch's cross-entropy leaves out targets of this value.
IGNORED_LABEL = -100
# A map holds a file descriptor, and the usual limit is 1,024 of them for a process.
_OPEN_SHARDS = 512
# Reading and masking rows one at a time costs five times as much a row.
_ROWS_READ_TOGETHER = 32


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass without their padding: rows laid end to end, row b at [cu_seqlens[b], cu_seqlens[b + 1]).

    `<cls>` is the last token of a row. A micro-batch without any row holds one placeholder `<sep><cls>` with nothing masked,
    label `IGNORED_LABEL` and row number -1, so that every rank has a forward pass to take part in: it adds nothing to a sum.
    """

    input_ids_N: torch.Tensor
    """What the model sees, int64."""
    positions_N: torch.Tensor
    """Place of each token in its row, from 0, int64."""
    cu_seqlens: torch.Tensor
    """First token of each row and, last, N; int32 [B + 1]."""
    max_length: int
    """Tokens of the longest row."""
    masked_N_indices: torch.Tensor
    """Places in 0..N-1 of the tokens to predict, ascending, int64 [M]."""
    labels_M: torch.Tensor
    """The tokens that stood there, int64."""
    mixed_B: torch.Tensor
    """1 where two repositories alternate, 0 where all is of one, `IGNORED_LABEL` for the placeholder; int64."""
    row_numbers_B: torch.Tensor
    """Row of the split, int64."""
    padded_slots: int
    """Slots of the stored rows that held padding, emptied rows included."""

    @property
    def num_tokens(self) -> int:
        """Real tokens; 0 for the placeholder, which nobody trains on."""
        return self.input_ids_N.numel() if self.num_rows else 0

    @property
    def num_rows(self) -> int:
        """Rows that count in the ICC loss: the placeholder does not."""
        return self.row_numbers_B.numel() if self.max_length and int(self.row_numbers_B[0]) >= 0 else 0

    @property
    def num_masked(self) -> int:
        """Tokens that count in the MLM loss."""
        return self.labels_M.numel()

    def to(self, device: torch.device) -> "MicroBatch":
        """The same micro-batch on another device; copies from pinned memory do not block."""
        return self._with_tensors({name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors().items()})

    def pinned(self) -> "MicroBatch":
        """The same micro-batch in page-locked memory."""
        return self._with_tensors({name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def _with_tensors(self, tensors: dict[str, torch.Tensor]) -> "MicroBatch":
        return replace(self, **tensors)  # type: ignore[arg-type]


class Rows(Protocol):
    """Rows by number: those of a data set, or made-up ones."""

    def __len__(self) -> int: ...

    @property
    def sequence_length(self) -> int:
        """Slots T of a row."""

    def rows(self, rows_R: INT64_ARRAY) -> tuple[TOKENS, RowLabels]:
        """Tokens [R, T] and labels [R] of these rows."""

    def labels(self, rows_R: INT64_ARRAY) -> RowLabels:
        """Labels [R] of these rows."""


class PackedRows:
    """The rows of one split, by number; shards are mapped when first read, and memory does not grow with the rows.

    For one thread at a time: a `Prefetcher` needs rows that nobody else reads.
    """

    def __init__(self, dataset: Path, split: str, tokenizer_fingerprint: str | None = None):
        """Read the manifest and compare it with the tokenizer and with every shard's size.

        Raises:
            MoseError: no manifest, no such split, rows of another tokenizer, a shard missing or of another size.
        """
        self.manifest = read_manifest(dataset)
        self.split = split
        self._dataset = dataset
        self._layout = self.manifest.layout()
        self._shards = self.manifest.shards(split)
        self._first_rows = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        made_with = self.manifest.tokenizer_fingerprint
        if tokenizer_fingerprint is not None and tokenizer_fingerprint != made_with:
            where = f"{dataset / MANIFEST_NAME}: tokenizer_fingerprint: {made_with}"
            raise MoseError(f"{where}, expected that of the tokenizer given, {tokenizer_fingerprint}")
        for shard in self._shards:
            self._check_size(shard)

    def _check_size(self, shard: ShardEntry) -> None:
        path, expected = self._dataset / shard.path, self._layout.file_size(shard.rows)
        if shard.num_bytes != expected:
            where = f"{self._dataset / MANIFEST_NAME}: splits.{self.split}: num_bytes of {shard.path}"
            raise MoseError(f"{where}: {shard.num_bytes}, expected {expected} for {shard.rows} rows")
        if not path.is_file():
            raise MoseError(f"{path}: no such shard, but the manifest lists it")
        if path.stat().st_size != expected:
            raise MoseError(f"{path}: {path.stat().st_size} bytes, expected {expected} as in the manifest: truncated or replaced")

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    @property
    def sequence_length(self) -> int:
        """Slots T of a row."""
        return self.manifest.sequence_length

    def rows(self, rows_R: INT64_ARRAY) -> tuple[TOKENS, RowLabels]:
        """Tokens [R, T] and labels [R] of these rows, in the order asked for.

        Raises:
            MoseError: a shard changed since it was checked, a label or a token cannot be.
        """
        tokens_RT = np.empty((len(rows_R), self.sequence_length), dtype=self._layout.dtype)
        for shard, places, inside in self._by_shard(rows_R):
            tokens_RT[places] = self._reader(shard).tokens(inside)
        largest = int(tokens_RT.max(initial=0))
        if largest >= self.manifest.vocabulary_size:
            where = f"{self._dataset}: {self.split}: token id {largest} in one of rows {rows_R.min()}..{rows_R.max()}"
            raise MoseError(f"{where}, expected ids below vocabulary_size {self.manifest.vocabulary_size}: damaged")
        return tokens_RT, self.labels(rows_R)

    def labels(self, rows_R: INT64_ARRAY) -> RowLabels:
        """Labels [R] of these rows, without touching their tokens.

        Raises:
            MoseError: a shard changed since it was checked, or a label cannot be.
        """
        columns = np.empty((3, len(rows_R)), dtype=np.int64)
        for shard, places, inside in self._by_shard(rows_R):
            labels = self._reader(shard).labels(inside)
            columns[:, places] = labels.mixed, labels.num_tokens, labels.num_snippets
        if (columns[1] > self.sequence_length).any():
            where = f"{self._dataset}: {self.split}: num_tokens {columns[1].max()} of a row"
            raise MoseError(f"{where}, expected at most {self.sequence_length}: damaged")
        return RowLabels(*columns)

    def _by_shard(self, rows_R: INT64_ARRAY) -> Iterator[tuple[int, INT64_ARRAY, INT64_ARRAY]]:
        """For each shard concerned: its number, places in the request, rows inside the shard."""
        shards_R = np.searchsorted(self._first_rows, rows_R, side="right") - 1
        for shard in np.unique(shards_R):
            places = np.flatnonzero(shards_R == shard)
            yield int(shard), places, rows_R[places] - self._first_rows[shard]

    def _reader(self, shard: int) -> ShardReader:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= _OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        entry = self._shards[shard]
        reader = ShardReader(self._dataset / entry.path, self._layout, entry.rows)
        reader.expect_random_access()
        self._open[shard] = reader
        return reader

    def close(self) -> None:
        """Release every memory map."""
        while self._open:
            self._open.popitem()[1].close()


@dataclass(frozen=True)
class BatchPlan:
    """What a global batch is (seed, size, order, masking) and which part of it this rank computes (ranks, micro-batches)."""

    seed: int
    global_batch_rows: int
    micro_batch_rows: int
    special: SpecialTokens
    ordinary_ids: TOKENS = field(repr=False, compare=False)
    data_rank: int = 0
    data_ranks: int = 1
    masked_share: float = MASKED_SHARE
    block_rows: int = BLOCK_ROWS
    window_rows: int = WINDOW_ROWS

    def __post_init__(self) -> None:
        for name in ("global_batch_rows", "micro_batch_rows", "data_ranks", "block_rows", "window_rows"):
            if getattr(self, name) < 1:
                raise MoseError(f"{name}: {getattr(self, name)}, expected 1 or more")
        if not 0 <= self.data_rank < self.data_ranks:
            raise MoseError(f"data_rank: {self.data_rank}, expected 0..{self.data_ranks - 1}")
        if not 0 < self.masked_share < 1:
            raise MoseError(f"masked_share: {self.masked_share}, expected a number between 0 and 1")
        if self.global_batch_rows % (self.data_ranks * self.micro_batch_rows):
            unit = f"data_ranks {self.data_ranks} x micro_batch_rows {self.micro_batch_rows}"
            raise MoseError(f"global_batch_rows: {self.global_batch_rows}, expected a multiple of {unit}")

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a rank in one step."""
        return self.global_batch_rows // (self.data_ranks * self.micro_batch_rows)


@dataclass(frozen=True)
class GlobalBatchLoader:
    """Gives a data rank its share of any global batch; ranks of one tensor-parallel group share a data rank, hence rows."""

    rows: Rows
    plan: BatchPlan

    @cached_property
    def _pin(self) -> bool:
        return torch.cuda.is_available()

    def share(self, consumed_rows: int) -> list[MicroBatch]:
        """This rank's `plan.micro_batches` micro-batches of the global batch that begins after `consumed_rows` rows.

        A pure function of `consumed_rows`: the batch is positions consumed_rows .. consumed_rows + global_batch_rows - 1 of
        the order, over the end of an epoch if need be.

        Raises:
            MoseError: see `PackedRows.rows`.
        """
        plan = self.plan
        rows_G, epochs_G = rows_of_run(
            plan.seed, consumed_rows, plan.global_batch_rows, len(self.rows), plan.block_rows, plan.window_rows
        )
        num_tokens_G = self.rows.labels(rows_G).num_tokens
        dealt = deal(num_tokens_G, plan.data_ranks, plan.micro_batch_rows)[plan.data_rank]
        batches = list(micro_batches(self.rows, rows_G[dealt], epochs_G[dealt], plan))
        return [batch.pinned() for batch in batches] if self._pin else batches


def validation_batches(rows: Rows, plan: BatchPlan, max_rows: int | None = None) -> Iterator[MicroBatch]:
    """This rank's micro-batches of the first `max_rows` rows (default: all), in row order, masked as in epoch 0 every time.

    Micro-batch j goes to data rank j mod data_ranks. Every rank gets the same number, since ranks meet in collectives: a
    rank that has none left gets the placeholder of `MicroBatch`, which adds nothing to any sum.
    """
    count = len(rows) if max_rows is None else min(max_rows, len(rows))
    starts = range(0, count, plan.micro_batch_rows)
    for turn in range(-(-len(starts) // plan.data_ranks)):
        start = (turn * plan.data_ranks + plan.data_rank) * plan.micro_batch_rows
        chosen = np.arange(start, min(start + plan.micro_batch_rows, count), dtype=np.int64)[None, :]
        yield from micro_batches(rows, chosen, np.zeros_like(chosen), plan)


def micro_batches(rows: Rows, rows_KB: INT64_ARRAY, epochs_KB: INT64_ARRAY, plan: BatchPlan) -> Iterator[MicroBatch]:
    """Read, mask and unpad K micro-batches of rows [K, B]; small ones are read together.

    Emptied rows (`num_tokens` 0) drop out, and the placeholder of `MicroBatch` stands for no row at all.
    """
    together = max(1, _ROWS_READ_TOGETHER // max(1, rows_KB.shape[1]))
    for first in range(0, len(rows_KB), together):
        some_KB = rows_KB[first : first + together]
        rows_R, epochs_R = some_KB.reshape(-1), epochs_KB[first : first + together].reshape(-1)
        tokens_RT, labels = rows.rows(rows_R)
        masked = mask_rows(
            tokens_RT, labels.num_tokens, rows_R, epochs_R, plan.seed, plan.special, plan.ordinary_ids, plan.masked_share
        )
        for chosen in np.split(np.arange(len(rows_R)), len(some_KB)):
            picked = RowLabels(labels.mixed[chosen], labels.num_tokens[chosen], labels.num_snippets[chosen])
            seen = Masked(masked.input_RT[chosen], masked.selected_RT[chosen])
            yield _unpadded(tokens_RT[chosen], seen, picked, rows_R[chosen], plan.special)


def _unpadded(tokens_RT: TOKENS, masked: Masked, labels: RowLabels, rows_R: INT64_ARRAY, special: SpecialTokens) -> MicroBatch:
    T = tokens_RT.shape[1]
    num_tokens_R = labels.num_tokens
    padded_slots = tokens_RT.size - int(num_tokens_R.sum())
    kept_R = num_tokens_R > 0
    lengths_B = num_tokens_R[kept_R]
    if not lengths_B.size:
        return _placeholder(special, padded_slots)
    real_RT = np.arange(T) >= T - num_tokens_R[:, None]
    starts = np.concatenate([[0], np.cumsum(lengths_B)])
    masked_N_indices = np.flatnonzero(masked.selected_RT[real_RT])
    return MicroBatch(
        input_ids_N=_tensor(masked.input_RT[real_RT]),
        positions_N=_tensor(np.arange(starts[-1]) - np.repeat(starts[:-1], lengths_B)),
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        max_length=int(lengths_B.max()),
        masked_N_indices=_tensor(masked_N_indices),
        labels_M=_tensor(tokens_RT[real_RT][masked_N_indices]),
        mixed_B=_tensor(labels.mixed[kept_R]),
        row_numbers_B=_tensor(rows_R[kept_R]),
        padded_slots=padded_slots,
    )


def _placeholder(special: SpecialTokens, padded_slots: int) -> MicroBatch:
    nothing = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(
        input_ids_N=torch.tensor([special.sep, special.cls]),
        positions_N=torch.arange(2),
        cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
        max_length=2,
        masked_N_indices=nothing,
        labels_M=nothing.clone(),
        mixed_B=torch.tensor([IGNORED_LABEL]),
        row_numbers_B=torch.tensor([-1]),
        padded_slots=padded_slots,
    )


def _tensor(values: NDArray[np.integer]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))
