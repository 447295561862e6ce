"""Initial weights of the projection heads: random, or the identity or the whitening of the encoder's states.

Letters: R rows (texts), D width.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mose.model.initialization import draw_parameter

# The bias before the LeakyReLU, in standard deviations of the states: it then bends few of them, at the start and in training.
BIAS_DEVIATIONS = 4.0
# Added to the variance of each direction before whitening, as a share of the mean variance.
VARIANCE_FLOOR = 0.02


@torch.no_grad()
def draw_heads(heads: nn.Module, width: int, seed: int) -> None:
    """Draw every head from its names and the seed, matrices with variance 1 / D.

    At the trunk's own deviation (.018) two of them in a row would shrink an embedding about threefold per layer at D = 1,024 and
    far more at small widths.
    """
    for name, parameter in heads.named_parameters(prefix="projection_heads"):
        parameter.copy_(draw_parameter(name, tuple(parameter.shape), width**-0.5, seed))


@torch.no_grad()
def start_from_states(heads: Iterable[nn.Module], states: Sequence[Tensor], whiten: bool) -> None:
    """Make each head the map x -> x - mean, from sample states [R, D] of its exit; or x -> W (x - mean) with their whitening W.

    The first matrix is the identity or W, the second the identity. The first bias lifts the outcome above zero, where LeakyReLU
    is the identity, too; the second subtracts it again. Exact for values within `BIAS_DEVIATIONS` of the mean; others are bent,
    not lost.
    """
    # Heads that start as the identity keep what pre-training learnt: the first step starts from the encoder's own embedding.
    for head, states_RD in zip(heads, states, strict=True):
        wide_RD = states_RD.double()
        matrix_DD = _whitening(wide_RD) if whiten else torch.eye(wide_RD.shape[1], dtype=torch.float64, device=wide_RD.device)
        mean_D, deviation_D = matrix_DD @ wide_RD.mean(dim=0), (wide_RD @ matrix_DD.T).std(dim=0)
        # A dimension that hardly varies in the sample may vary later: it gets the bias of an average one.
        lift_D = BIAS_DEVIATIONS * deviation_D.maximum(deviation_D.square().mean().sqrt())
        parameters = dict(head.named_parameters())
        parameters["0.weight"].copy_(matrix_DD)
        nn.init.eye_(parameters["2.weight"])
        parameters["0.bias"].copy_(lift_D - mean_D)
        parameters["2.bias"].copy_(-lift_D)


def _whitening(states_RD: Tensor) -> Tensor:
    """The symmetric matrix [D, D] after which all directions of the states vary alike, with the total variance they have.

    States of a language model vary mostly in a few directions, and cosines then compare these only (Su et al. 2021). Of all
    whitening matrices the symmetric one changes the states least (Kessy et al. 2018). Equal states have none: the identity.
    """
    covariance_DD = torch.cov(states_RD.T)
    variance_D, directions_DD = torch.linalg.eigh(covariance_DD)
    if variance_D.sum() <= 0:
        return torch.eye(len(covariance_DD), dtype=covariance_DD.dtype, device=covariance_DD.device)
    # Without the floor, directions that hold rounding errors only would count as much as any.
    inverse_D = 1 / (variance_D.clamp_min(0) + VARIANCE_FLOOR * variance_D.mean())
    scale_D = (inverse_D * variance_D.sum() / (inverse_D * variance_D).sum()).sqrt()
    whitening_DD: Tensor = directions_DD * scale_D @ directions_DD.T
    return whitening_DD
