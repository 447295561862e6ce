"""`torch.compile` of each layer, with the attention core left out of the compiled code."""

from typing import Any

import torch
from torch import Tensor, nn

from mose.model.modeling_mose import StarEncoder2


class UncompiledCore(nn.Module):
    """An attention core that runs as it is: its kernels are fused already, and the loop over rows would compile at each batch."""

    def __init__(self, core: nn.Module):
        super().__init__()
        self.core = core

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *inputs: Any) -> Tensor:
        output: Tensor = self.core(*inputs)
        return output


def compile_layers(trunk: StarEncoder2) -> None:
    """Compile the layers of `trunk` for any number of tokens: they share one piece of code, built at the first forward."""
    layer: Any
    for layer in trunk.layers:
        layer.self_attn.core = UncompiledCore(layer.self_attn.core)
        layer.forward = torch.compile(layer.forward, dynamic=True)
