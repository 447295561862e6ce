"""Activation checkpointing: recompute in the backward pass what would otherwise be kept in memory; the numbers stay the same.

`selective` drops the intermediates of the attention core and the feed-forward activation, which are large and cheap to
recompute; `full` keeps only each layer's input, at the cost of one more forward pass.

Letters: N real tokens, D width, F feed-forward width.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mose.model.modeling_mose import StarEncoder2, StarEncoder2MLP


def apply_activation_checkpointing(trunk: StarEncoder2, kind: str) -> None:
    """Apply checkpointing of `kind` (none, selective, full) to each layer of `trunk`; parameter names stay the same."""
    if kind == "none":
        return
    layer: Any
    for layer in trunk.layers:
        if kind == "full":
            layer.forward = functools.partial(_recomputed, layer.forward)
        else:
            layer.self_attn.core = RecomputedCore(layer.self_attn.core)
            layer.mlp.forward = functools.partial(_feed_forward, layer.mlp)


class RecomputedCore(nn.Module):
    """An attention core that keeps only its inputs for the backward pass."""

    def __init__(self, core: nn.Module):
        super().__init__()
        self.core = core

    def forward(self, *inputs: Any) -> Tensor:
        return _recomputed(self.core, *inputs)


def _recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    # No random state is kept, since dropout seeds itself at each place (dropout.py). torch's check of metadata is off: under
    # ZeRO 3 the weights have another layout in memory at the second pass.
    output: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")
    return output


def _feed_forward(mlp: StarEncoder2MLP, x_ND: Tensor) -> Tensor:
    """The feed-forward layer; it frees its activation [N, F] after use and recomputes it before the backward pass.

    `torch.utils.checkpoint` around the activation alone would save nothing, since the second linear layer keeps its input;
    around both it would repeat the second matrix product.
    """
    before_NF = mlp.c_fc(x_ND)
    after_NF = F.gelu(before_NF, approximate="tanh")
    output_ND: Tensor = mlp.c_proj(after_NF)
    if output_ND.requires_grad:
        output_ND.register_hook(_free(after_NF, before_NF))  # type: ignore[no-untyped-call]
    return output_ND


def _free(after_NF: Tensor, before_NF: Tensor) -> Callable[[Tensor], None]:
    """Free the memory of `after_NF`; returns a hook that allocates it again and recomputes it from `before_NF`, once."""
    # `.data` has its own version counter, so that autograd does not see the refill as an in-place change.
    held = [after_NF.data, before_NF.detach()]
    storage = after_NF.untyped_storage()
    num_bytes = storage.nbytes()
    storage.resize_(0)

    def fill_again(_: Tensor) -> None:
        # The graph keeps this hook to the end of the backward pass, so it drops its references here.
        emptied, source = held
        held.clear()
        emptied.untyped_storage().resize_(num_bytes)
        emptied.copy_(F.gelu(source, approximate="tanh"))

    return fill_again
