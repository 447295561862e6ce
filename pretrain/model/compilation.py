"""`torch.compile` of each layer, without the attention core."""

from typing import Any

import torch
from torch import Tensor, nn

from mose.model.modeling_mose import StarEncoder2


class UncompiledCore(nn.Module):
    """An attention core that stays uncompiled: its kernels are fused, and its loop over rows would recompile per batch."""

    def __init__(self, core: nn.Module):
        super().__init__()
        self.core = core

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *inputs: Any) -> Tensor:
        output: Tensor = self.core(*inputs)
        return output


def compile_layers(trunk: StarEncoder2) -> None:
    """Compile the layers of `trunk` for any number of tokens; all layers share the code that the first forward pass compiles."""
    layer: Any
    for layer in trunk.layers:
        layer.self_attn.core = UncompiledCore(layer.self_attn.core)
        layer.forward = torch.compile(layer.forward, dynamic=True)
