"""Initial weights: each parameter drawn from its own name and the seed, so that no layout can change them."""

import torch
from torch import Tensor

from mose.seeding import derive_key


def draw_parameter(name: str, shape: tuple[int, ...], standard_deviation: float, seed: int) -> Tensor:
    """The whole initial tensor (float32, CPU) of the parameter called `name`.

    normal(0, standard_deviation) for matrices, one for LayerNorm weights, zero for biases (released code; StarCoder2).
    """
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    generator = torch.Generator().manual_seed(derive_key(seed, "initialization", name) >> 1)
    return torch.empty(shape).normal_(0.0, standard_deviation, generator=generator)


@torch.no_grad()
def initialize(model: torch.nn.Module, standard_deviation: float, seed: int) -> None:
    """Fill every parameter of an unsharded model with its drawn values."""
    for name, parameter in model.named_parameters():
        parameter.copy_(draw_parameter(name, tuple(parameter.shape), standard_deviation, seed))
