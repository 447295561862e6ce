"""Initial weights: each parameter is drawn from its name and the seed, so that they are the same in every layout."""

import torch
from torch import Tensor

from mose.seeding import derive_key

INITIALIZATIONS = (NORMAL, AVERAGING) = ("normal", "averaging")
"""`normal` is the released model's. In `averaging` each token, `<cls>` too, starts as its embedding plus a mean over its row."""

# Of `averaging`: standard deviation of the first attention logits, and the feed-forward output beside an input of one.
_LOGIT_DEVIATION = 0.01
_FEED_FORWARD_SCALE = 0.01


def draw_parameter(name: str, shape: tuple[int, ...], standard_deviation: float, seed: int, kind: str = NORMAL) -> Tensor:
    """The whole initial tensor (float32, CPU) of the parameter called `name`.

    normal(0, standard_deviation) for matrices, one for LayerNorm weights, zero for biases (released code; StarCoder2).
    Of kind `averaging`, layers differ: see `_draw_averaging`.
    """
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    generator = torch.Generator().manual_seed(derive_key(seed, "initialization", name) >> 1)
    drawn = torch.empty(shape).normal_(0.0, 1.0, generator=generator)
    if kind == AVERAGING:
        return _averaging(name, drawn, standard_deviation)
    return drawn.mul_(standard_deviation)


def _averaging(name: str, drawn: Tensor, standard_deviation: float) -> Tensor:
    """Scale standard normal values for a layer that starts as the mean over the row, at any width and depth.

    Queries and keys are small, so that attention is uniform; value and output projections are orthogonal, so that the mean of
    the normalised tokens keeps its angles; the feed-forward layer adds almost nothing.
    """
    layer = name.split(".")[-2]
    if layer in ("q_proj", "k_proj"):
        # A logit has deviation D * s^2 for weights of deviation s on D normalised inputs.
        return drawn.mul_((_LOGIT_DEVIATION / drawn.shape[1]) ** 0.5)
    if layer in ("v_proj", "o_proj"):
        tall = drawn if drawn.shape[0] >= drawn.shape[1] else drawn.T
        columns: Tensor = torch.linalg.qr(tall)[0]
        return (columns if tall is drawn else columns.T).contiguous()
    if layer == "c_proj":
        return drawn.mul_(_FEED_FORWARD_SCALE * drawn.shape[1] ** -0.5)
    return drawn.mul_(standard_deviation)


@torch.no_grad()
def initialize(model: torch.nn.Module, standard_deviation: float, seed: int, kind: str = NORMAL) -> None:
    """Fill every parameter of an unsharded model with its drawn values."""
    for name, parameter in model.named_parameters():
        parameter.copy_(draw_parameter(name, tuple(parameter.shape), standard_deviation, seed, kind))
