"""Dummy tokens that make a micro-batch divide over the tensor ranks under sequence parallelism.

Letters: N real tokens.
"""

from dataclasses import replace

import torch

from pretrain.data.micro_batch import MicroBatch


def padded_tokens(batch: MicroBatch, multiple: int) -> MicroBatch:
    """The same micro-batch with one more row of dummy tokens where N is no multiple; no loss looks at that row."""
    missing = -batch.input_ids_N.numel() % multiple
    if not missing:
        return batch
    dummy = torch.arange(missing, device=batch.input_ids_N.device)
    return replace(
        batch,
        input_ids_N=torch.cat((batch.input_ids_N, torch.zeros_like(dummy))),
        positions_N=torch.cat((batch.positions_N, dummy)),
        cu_seqlens=torch.cat((batch.cu_seqlens, batch.cu_seqlens[-1:] + missing)),
        max_length=max(batch.max_length, missing),
    )
