"""Covers dummy tokens of sequence parallelism: the count divides, and nothing that a loss looks at has moved."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.micro_batch import MicroBatch
from pretrain.parallel.sequence import padded_tokens


def batch_of(lengths: list[int]) -> MicroBatch:
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return MicroBatch(
        input_ids_N=torch.arange(100, 100 + sum(lengths)),
        positions_N=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=bounds.to(torch.int32),
        max_length=max(lengths),
        masked_N_indices=torch.tensor([1]),
        labels_M=torch.tensor([7]),
        mixed_B=torch.zeros(len(lengths), dtype=torch.long),
        row_numbers_B=torch.arange(len(lengths)),
        padded_slots=0,
    )


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.sampled_from([1, 2, 4]))
def test_tokens_divide_and_rows_stay_where_they_are(lengths: list[int], multiple: int) -> None:
    batch = batch_of(lengths)
    padded = padded_tokens(batch, multiple)
    real = batch.input_ids_N.numel()
    assert padded.input_ids_N.numel() % multiple == 0
    assert padded.input_ids_N.numel() - real < multiple
    assert torch.equal(padded.input_ids_N[:real], batch.input_ids_N)
    assert torch.equal(padded.positions_N[:real], batch.positions_N)
    assert torch.equal(padded.cu_seqlens[: len(lengths) + 1], batch.cu_seqlens)
    assert int(padded.cu_seqlens[-1]) == padded.positions_N.numel() == padded.input_ids_N.numel()
    assert int(torch.diff(padded.cu_seqlens).min()) > 0
    assert int(torch.diff(padded.cu_seqlens).max()) <= padded.max_length
    assert padded.cu_seqlens.dtype == torch.int32
