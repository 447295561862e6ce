"""`torch.compile` of each layer, with the attention core left out of the compiled code."""

from typing import Any

import torch
from torch import Tensor, nn


class UncompiledCore(nn.Module):
    """An attention core that runs as it is: its kernels are fused already, and the loop over rows would compile at each batch."""

    def __init__(self, core: nn.Module):
        super().__init__()
        self.core = core

    @torch.compiler.disable
    def forward(self, *inputs: Any) -> Tensor:
        output: Tensor = self.core(*inputs)
        return output


def compile_layers(trunk: nn.Module) -> None:
    """Compile the layers of `trunk` for any number of tokens: they share one piece of code, built at the first forward."""
    for layer in trunk.layers:
        layer.self_attn.core = UncompiledCore(layer.self_attn.core)
        layer.forward = torch.compile(layer.forward, dynamic=True)
