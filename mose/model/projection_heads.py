"""Initial weights of the projection heads: random, or the identity map on the encoder's states.

Letters: R rows (texts), D width.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mose.model.initialization import draw_parameter

# The bias before the LeakyReLU, in standard deviations of the states: it then bends few of them, at the start and in training.
BIAS_DEVIATIONS = 4.0


@torch.no_grad()
def draw_heads(heads: nn.Module, width: int, seed: int) -> None:
    """Draw every head from its names and the seed, matrices with variance 1 / D.

    At the trunk's own deviation (.018) two of them in a row would shrink an embedding about threefold per layer at D = 1,024 and
    far more at small widths.
    """
    for name, parameter in heads.named_parameters(prefix="projection_heads"):
        parameter.copy_(draw_parameter(name, tuple(parameter.shape), width**-0.5, seed))


@torch.no_grad()
def start_as_identity(heads: Iterable[nn.Module], states: Sequence[Tensor]) -> None:
    """Make each head the map x -> x - mean, from sample states [R, D] of its exit.

    Both matrices become the identity. The first bias lifts the centred states above zero, where LeakyReLU is the identity too;
    the second subtracts it again. Exact for states within `BIAS_DEVIATIONS` of the mean; others are bent, not lost.
    """
    # Heads that start as the identity keep what pre-training learnt: the first step starts from the encoder's own embedding.
    for head, states_RD in zip(heads, states, strict=True):
        mean_D, deviation_D = states_RD.float().mean(dim=0), states_RD.float().std(dim=0)
        # A dimension that hardly varies in the sample may vary later: it gets the bias of an average one.
        lift_D = BIAS_DEVIATIONS * deviation_D.maximum(deviation_D.square().mean().sqrt())
        parameters = dict(head.named_parameters())
        for name in ("0.weight", "2.weight"):
            nn.init.eye_(parameters[name])
        parameters["0.bias"].copy_(lift_D - mean_D)
        parameters["2.bias"].copy_(-lift_D)
