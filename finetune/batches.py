"""Which pairs form a batch, and how texts of many lengths become unpadded model input.

Letters: B rows (texts), N tokens of all rows together, P pairs of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mose.dataset.packed_sequence import TOKENS
from mose.errors import MoseError
from mose.seeding import generator

INDICES = NDArray[np.int64]


@dataclass(frozen=True)
class PackedBatch:
    """Rows laid end to end: ids [N], positions from 0 in each row [N], bounds int32 [B + 1], tokens of the longest row."""

    input_ids_N: Tensor
    positions_N: Tensor
    cu_seqlens: Tensor
    max_length: int

    def to(self, device: torch.device) -> "PackedBatch":
        """The same rows on another device."""
        return PackedBatch(self.input_ids_N.to(device), self.positions_N.to(device), self.cu_seqlens.to(device), self.max_length)


def pack_rows(rows: Sequence[TOKENS]) -> PackedBatch:
    """Lay token rows end to end; no padding is added."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    positions_N = np.concatenate([np.arange(length) for length in lengths])
    bounds = np.concatenate(([0], lengths.cumsum())).astype(np.int32)
    input_ids_N = np.concatenate(rows).astype(np.int64)
    return PackedBatch(
        torch.from_numpy(input_ids_N), torch.from_numpy(positions_N), torch.from_numpy(bounds), int(lengths.max(initial=0))
    )


def balanced_shares(costs_R: INDICES, ranks: int) -> list[INDICES]:
    """Deal R rows, a multiple of `ranks`, to ranks of equal numbers and alike cost; returns each rank's rows, ascending.

    Snake order: rounds of one row per rank, most costly rows first, every other round from the last rank to the first. What one
    round adds to a rank the next takes back, so two ranks differ by at most the most costly row less the least costly one. Equal
    numbers, which LPT would not give, let ranks exchange embeddings by a plain all-gather. Every rank computes the same.
    """
    rounds = np.argsort(-costs_R, kind="stable").reshape(-1, ranks)
    rounds[1::2] = rounds[1::2, ::-1]
    return [np.sort(rows) for rows in rounds.T]


def chunks_by_length(lengths: Sequence[int], max_rows: int, max_tokens: int | None = None) -> list[INDICES]:
    """Group rows of similar length, shortest first: at most `max_rows` rows and, except for a single row, `max_tokens`."""
    order = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")
    chunks: list[list[int]] = []
    tokens = 0
    for row in order.tolist():
        full = chunks and (len(chunks[-1]) >= max_rows or (max_tokens is not None and tokens + lengths[row] > max_tokens))
        if not chunks or full:
            chunks.append([])
            tokens = 0
        chunks[-1].append(row)
        tokens += lengths[row]
    return [np.array(chunk, dtype=np.int64) for chunk in chunks]


@dataclass(frozen=True)
class BatchItems:
    """Indices of the pairs of one batch, by the kind of query; no index occurs twice."""

    text_code: INDICES
    code_code: INDICES


class BatchOrder:
    """The pairs of batch number `step`: a pure function of seed and step.

    Each epoch has its own permutation. If pairs have a second snippet, half of every batch is code-code and drawn from
    those, the other half is text-code and drawn from all others; an epoch ends when either half runs out.
    """

    def __init__(self, has_second_code: Sequence[bool], batch_pairs: int, seed: int):
        """Plan batches of `batch_pairs` over `len(has_second_code)` pairs.

        Raises:
            MoseError: there are fewer pairs, or fewer with a second snippet, than one batch takes.
        """
        self._second = np.flatnonzero(np.asarray(has_second_code, dtype=bool))
        self._num_pairs, self._seed = len(has_second_code), seed
        self._code_code = batch_pairs // 2 if len(self._second) else 0
        self._text_code = batch_pairs - self._code_code
        if self._num_pairs < batch_pairs:
            raise MoseError(f"batch_pairs: {batch_pairs}, but there are only {self._num_pairs} pairs of the train split")
        if len(self._second) < self._code_code:
            raise MoseError(
                f"batch_pairs: half of {batch_pairs} is code-code, but only {len(self._second)} pairs have code_b; "
                "expected at least half a batch of them, or none"
            )
        self.batches_per_epoch = self._num_pairs // batch_pairs
        if self._code_code:
            self.batches_per_epoch = min(self.batches_per_epoch, len(self._second) // self._code_code)
        self._epoch: tuple[int, BatchItems] | None = None

    def at(self, step: int) -> BatchItems:
        """The pairs of the batch of optimiser step `step`, counted from 0."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._permute(epoch))
        items = self._epoch[1]
        return BatchItems(
            items.text_code[batch * self._text_code : (batch + 1) * self._text_code],
            items.code_code[batch * self._code_code : (batch + 1) * self._code_code],
        )

    def _permute(self, epoch: int) -> BatchItems:
        draw = generator(self._seed, "retrieval order", epoch)
        code_code = draw.permutation(self._second)[: self.batches_per_epoch * self._code_code]
        others = np.setdiff1d(np.arange(self._num_pairs), code_code)
        return BatchItems(draw.permutation(others), code_code)
