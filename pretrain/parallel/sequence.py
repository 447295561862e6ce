"""Sequence parallelism: between the tensor-parallel layers, each tensor rank holds and computes its shard of the tokens only.

Norms, dropout and residual sums run on [S, D]. A layer norm's output is gathered once for all column-parallel layers that
read it. These keep the gathered [N, D] for their weights' gradients: one all-gather instead of three, in exchange for memory
that is not divided over ranks.

Letters: N real tokens, padded to a multiple of the tensor ranks; S = N / tensor ranks; D width.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mose.model.modeling_mose import StarEncoder2
from pretrain.data.micro_batch import MicroBatch
from pretrain.parallel.tensor import gather_tokens, with_summed_gradients


class ShardedLayerNorm(nn.LayerNorm):
    """LayerNorm of this rank's shard [S, D]; the gradients of its weight and bias are summed over all shards."""

    def forward(self, x_SD: Tensor) -> Tensor:
        weight_D, bias_D = with_summed_gradients(self.weight, self.bias)
        return F.layer_norm(x_SD, self.normalized_shape, weight_D, bias_D, self.eps)


class GatheringLayerNorm(ShardedLayerNorm):
    """The same, followed by an all-gather of the normalised shards for column-parallel layers: [S, D] to [N, D]."""

    def forward(self, x_SD: Tensor) -> Tensor:
        return gather_tokens(super().forward(x_SD), partial_gradients=True)


class GatheredExit(nn.Module):
    """An exit's state gathered to all tokens [N, D]; every rank computes the same heads on it, so gradients are complete."""

    def forward(self, x_SD: Tensor) -> Tensor:
        return gather_tokens(x_SD, partial_gradients=False)


def apply_sequence_parallelism(trunk: StarEncoder2) -> None:
    """Replace norms and exits of a tensor-parallel trunk by gathering ones; parameter names stay the same."""
    for layer in trunk.layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(layer, name, _as_kind(GatheringLayerNorm, getattr(layer, name)))
    if isinstance(trunk.norm, nn.LayerNorm):
        trunk.norm = _as_kind(ShardedLayerNorm, trunk.norm)
    for index in range(len(trunk.exits)):
        trunk.exits[index] = GatheredExit()


def _as_kind(kind: type[ShardedLayerNorm], norm: nn.LayerNorm) -> ShardedLayerNorm:
    """A norm of class `kind` with the parameters of `norm`."""
    replacement = kind(norm.normalized_shape, eps=norm.eps, device="meta")
    replacement.weight, replacement.bias = norm.weight, norm.bias
    return replacement


def padded_tokens(batch: MicroBatch, multiple: int) -> MicroBatch:
    """The same micro-batch with one more row of dummy tokens where N is not a multiple of `multiple`; no loss reads that row."""
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
