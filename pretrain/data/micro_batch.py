"""The input of one forward pass: rows concatenated without their padding, and the tokens to predict.

Letters: R rows as stored, T slots of a stored row, B rows of a micro-batch, N real tokens, M masked tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS, SpecialTokens
from mose.dataset.shard_format import RowLabels
from pretrain.data.masking import Masked

# torch's cross-entropy leaves out targets of this value.
IGNORED_LABEL = -100


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, concatenated without padding; row b is tokens cu_seqlens[b] .. cu_seqlens[b + 1] - 1.

    `<cls>` is the last token of a row. A micro-batch without any row holds one placeholder `<sep><cls>` with nothing masked,
    label `IGNORED_LABEL` and row number -1. It adds nothing to any sum, and lets a rank without rows take part in collectives.
    """

    input_ids_N: torch.Tensor
    """What the model sees, int64."""
    positions_N: torch.Tensor
    """Position of each token in its row, from 0, int64."""
    cu_seqlens: torch.Tensor
    """First token of each row and, last, N; int32 [B + 1]."""
    max_length: int
    """Tokens of the longest row."""
    masked_N_indices: torch.Tensor
    """Indices in 0..N-1 of the tokens to predict, ascending, int64 [M]."""
    labels_M: torch.Tensor
    """The original tokens at these indices, int64."""
    mixed_B: torch.Tensor
    """1 where two repositories alternate, 0 where all is of one, `IGNORED_LABEL` for the placeholder; int64."""
    row_numbers_B: torch.Tensor
    """Row of the split (of a mixture: of its sources' concatenated splits), int64."""
    padded_slots: int
    """Slots of the stored rows that held padding, emptied rows included."""

    @property
    def num_tokens(self) -> int:
        """Real tokens; 0 for the placeholder, which is not trained on."""
        return self.input_ids_N.numel() if self.num_rows else 0

    @property
    def squared_lengths(self) -> int:
        """Sum over rows of the square of their real tokens, what attention costs; 0 for the placeholder."""
        return int(torch.diff(self.cu_seqlens.long()).square().sum()) if self.num_rows else 0

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


def unpadded(
    tokens_RT: TOKENS, masked: Masked, labels: RowLabels, row_numbers_R: INT64_ARRAY, sizes: Sequence[int], special: SpecialTokens
) -> Iterator[MicroBatch]:
    """Micro-batches of `sizes` consecutive rows each, from left-padded, masked rows; R is the sum of `sizes`.

    Emptied rows (`num_tokens` 0) are left out; a micro-batch without rows is the placeholder. The tensors are slices of arrays
    of all R rows: to make these once takes a fraction of the time of making them per micro-batch.
    """
    flat = _laid_end_to_end(tokens_RT, masked, labels.num_tokens)
    bounds_M = np.searchsorted(flat.places_M, flat.starts_R)
    last = 0
    for size in sizes:
        first, last = last, last + size
        begin, end = int(flat.starts_R[first]), int(flat.starts_R[last])
        padded_slots = (last - first) * tokens_RT.shape[1] - (end - begin)
        if begin == end:
            yield placeholder(special, padded_slots)
            continue
        kept = first + np.flatnonzero(labels.num_tokens[first:last])
        masked_here = slice(int(bounds_M[first]), int(bounds_M[last]))
        yield MicroBatch(
            input_ids_N=torch.from_numpy(flat.input_ids_N[begin:end]),
            positions_N=torch.from_numpy(flat.positions_N[begin:end]),
            cu_seqlens=torch.from_numpy((flat.starts_R[np.append(kept, last)] - begin).astype(np.int32)),
            max_length=int(labels.num_tokens[first:last].max()),
            masked_N_indices=torch.from_numpy(flat.places_M[masked_here] - begin),
            labels_M=torch.from_numpy(flat.labels_M[masked_here]),
            mixed_B=torch.from_numpy(labels.mixed[kept]),
            row_numbers_B=torch.from_numpy(row_numbers_R[kept]),
            padded_slots=padded_slots,
        )


@dataclass(frozen=True)
class _Flat:
    """All rows, concatenated without padding; `starts_R` has one more entry, N."""

    input_ids_N: INT64_ARRAY
    positions_N: INT64_ARRAY
    starts_R: INT64_ARRAY
    places_M: INT64_ARRAY
    labels_M: INT64_ARRAY


def _laid_end_to_end(tokens_RT: TOKENS, masked: Masked, num_tokens_R: INT64_ARRAY) -> _Flat:
    T, lengths = tokens_RT.shape[1], num_tokens_R.tolist()
    starts_R = np.concatenate([[0], np.cumsum(num_tokens_R)])
    tokens_N = np.concatenate([row[T - length :] for row, length in zip(tokens_RT, lengths, strict=True)])
    input_ids_N = tokens_N.astype(np.int64)
    places_T = np.arange(T)
    positions_N = np.concatenate([places_T[:length] for length in lengths])
    row_M, slot_M = np.divmod(masked.places_M, T)
    places_M = starts_R[row_M] + slot_M - (T - num_tokens_R)[row_M]
    labels_M = input_ids_N[places_M]
    input_ids_N[places_M] = masked.seen_M
    return _Flat(input_ids_N, positions_N, starts_R, places_M, labels_M)


def placeholder(special: SpecialTokens, padded_slots: int) -> MicroBatch:
    """The micro-batch without any row; `padded_slots` counts the slots of the emptied rows that it replaces."""
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
