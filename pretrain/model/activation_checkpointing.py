"""Activation checkpointing: what the backward pass needs is computed again instead of kept; the numbers stay the same.

`selective` keeps neither the attention core's insides nor the feed-forward layer's activation, both cheap to compute again;
`full` keeps each layer's input only, for one more forward pass.

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
    """Make each layer of `trunk` compute again what `kind` (none, selective, full) says; parameter names stay the same."""
    if kind == "none":
        return
    layer: Any
    for layer in trunk.layers:
        if kind == "full":
            layer.forward = functools.partial(_computed_again, layer.forward)
        else:
            layer.self_attn.core = RecomputedCore(layer.self_attn.core)
            layer.mlp.forward = functools.partial(_feed_forward, layer.mlp)


class RecomputedCore(nn.Module):
    """An attention core of which only the inputs are kept."""

    def __init__(self, core: nn.Module):
        super().__init__()
        self.core = core

    def forward(self, *inputs: Any) -> Tensor:
        return _computed_again(self.core, *inputs)


def _computed_again(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    # Dropout seeds itself at each place (dropout.py); and under ZeRO 3 weights lie otherwise in memory the second time.
    output: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")
    return output


def _feed_forward(mlp: StarEncoder2MLP, x_ND: Tensor) -> Tensor:
    """The feed-forward layer, which gives up its activation [N, F] once used and fills it again before the backward pass.

    `torch.utils.checkpoint` around the activation alone would save nothing, since the second linear layer keeps its input, and
    around both it would run the second product again.
    """
    before_NF = mlp.c_fc(x_ND)
    after_NF = F.gelu(before_NF, approximate="tanh")
    output_ND: Tensor = mlp.c_proj(after_NF)
    if output_ND.requires_grad:
        output_ND.register_hook(_emptied(after_NF, before_NF))  # type: ignore[no-untyped-call]
    return output_ND


def _emptied(after_NF: Tensor, before_NF: Tensor) -> Callable[[Tensor], None]:
    """Take the memory of `after_NF` away; the function that gives it back, filled from `before_NF`, once."""
    # `.data` has a version of its own: filling it again is no change that autograd would complain about.
    held = [after_NF.data, before_NF.detach()]
    storage = after_NF.untyped_storage()
    num_bytes = storage.nbytes()
    storage.resize_(0)

    def fill_again(_: Tensor) -> None:
        # The graph keeps this function to the end of the backward pass, so what it holds is let go here.
        emptied, source = held
        held.clear()
        emptied.untyped_storage().resize_(num_bytes)
        emptied.copy_(F.gelu(source, approximate="tanh"))

    return fill_again
