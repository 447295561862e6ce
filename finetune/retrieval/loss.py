"""The contrastive loss: CLIP's, at every exit, deeper exits weighing more.

Letters: P pairs of the whole batch (all ranks), R rows (texts), D width, E exits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.config import CLIP, ONE_WAY


@dataclass(frozen=True)
class RetrievalLoss:
    """The weighted total (with gradient), and what is logged of each exit (without).

    `losses_E` is the CLIP loss at full width, whichever loss is trained; `accuracies_E` the share of queries that rank their
    target first; `cosines_E` the mean cosine of two different texts; `guess` the CLIP loss of equal embeddings.
    """

    total: Tensor
    losses_E: Tensor
    accuracies_E: Tensor
    cosines_E: Tensor
    guess: Tensor

    def record(self) -> "LossRecord":
        """Its values for a checkpoint; float32 survives the way through JSON bit for bit."""
        losses, accuracies, cosines = (values_E.tolist() for values_E in (self.losses_E, self.accuracies_E, self.cosines_E))
        return LossRecord(self.total.item(), losses, accuracies, cosines, self.guess.item())


@dataclass(frozen=True)
class LossRecord:
    """The values of a `RetrievalLoss` as plain numbers."""

    total: float
    losses: list[float]
    accuracies: list[float]
    cosines: list[float]
    guess: float

    def restored(self, device: torch.device) -> RetrievalLoss:
        """The loss again, without gradient."""
        values = (self.total, self.losses, self.accuracies, self.cosines, self.guess)
        return RetrievalLoss(*(torch.tensor(value, device=device) for value in values))


def false_negatives(query_keys_P: Tensor, target_keys_P: Tensor, description_keys_P: Tensor) -> Tensor:
    """Cells [P, P] off the diagonal that must not count as negatives, from keys (hashes) of the texts as they were mined.

    Pair j is no negative of pair i when their queries are equal, their targets are equal, or the query of one is the
    target of the other: the same text would be pulled and pushed at once. Nor is it when both have the same description:
    their codes solve one task (such as the submissions to one programming exercise), so each answers the query of the other.
    """
    crossed = query_keys_P[:, None] == target_keys_P[None, :]
    excluded_PP = crossed | crossed.T
    for keys_P in (query_keys_P, target_keys_P, description_keys_P):
        excluded_PP |= keys_P[:, None] == keys_P[None, :]
    return excluded_PP.fill_diagonal_(False)


def clip_logits(queries_PD: Tensor, targets_PD: Tensor, logit_scale: float | Tensor, excluded_PP: Tensor) -> Tensor:
    """Scaled similarities [P, P] in float32; excluded cells are -inf. Embeddings are normalised."""
    logits_PP = logit_scale * queries_PD.float() @ targets_PD.float().T
    return logits_PP.masked_fill(excluded_PP, float("-inf"))


def clip_loss(logits_PP: Tensor) -> Tensor:
    """Mean of the row-wise and the column-wise cross-entropy against the diagonal (Radford et al. 2021)."""
    diagonal_P = torch.arange(len(logits_PP), device=logits_PP.device)
    return (F.cross_entropy(logits_PP, diagonal_P) + F.cross_entropy(logits_PP.T, diagonal_P)) / 2


@torch.no_grad()
def mean_cosine(embeddings_RD: Tensor) -> Tensor:
    """Mean cosine of two different rows; 1 where all rows are one point, zero vectors too.

    Taken from the mean squared distance, 1 - distance^2 / 2, which is the cosine of normalised rows.
    """
    rows_RD = embeddings_RD.float()
    deviation_RD = rows_RD - rows_RD.mean(dim=0)
    # The mean of |x_i - x_j|^2 over pairs of different rows is twice the unbiased variance, summed over dimensions.
    return 1 - deviation_RD.square().sum() / (len(rows_RD) - 1)


def guess_loss(excluded_PP: Tensor) -> Tensor:
    """The CLIP loss of embeddings that are all one point: the mean logarithm of the number of candidates, ln P if all are."""
    candidates_P = len(excluded_PP) - excluded_PP.sum(dim=1)
    return candidates_P.float().log().mean()


def trained_loss(kind: str, queries_PD: Tensor, targets_PD: Tensor, logit_scale: float | Tensor, excluded_PP: Tensor) -> Tensor:
    """The loss of one exit at one width, by its name in the config."""
    logits_PP = clip_logits(queries_PD, targets_PD, logit_scale, excluded_PP)
    if kind == CLIP:
        return clip_loss(logits_PP)
    diagonal_P = torch.arange(len(logits_PP), device=logits_PP.device)
    if kind == ONE_WAY:
        return F.cross_entropy(logits_PP, diagonal_P)
    # Two queries with one answer are no negatives of each other either, and a text is none of itself.
    same_PP = excluded_PP | torch.eye(len(excluded_PP), dtype=torch.bool, device=excluded_PP.device)
    rows_PK = torch.cat((logits_PP, clip_logits(queries_PD, queries_PD, logit_scale, same_PP)), dim=1)
    columns_PK = torch.cat((logits_PP.T, clip_logits(targets_PD, targets_PD, logit_scale, same_PP)), dim=1)
    return (F.cross_entropy(rows_PK, diagonal_P) + F.cross_entropy(columns_PK, diagonal_P)) / 2


def multi_exit_loss(
    queries: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[float],
    logit_scale: float | Tensor,
    excluded_PP: Tensor,
    kind: str = CLIP,
    dimensions: Sequence[int] = (),
) -> RetrievalLoss:
    """Sum over exits of weight x loss; `queries` and `targets` are E tensors [P, D] of normalised embeddings.

    The similarity is *multiplied* by `logit_scale` (one, or one per exit [E]): the paper's "temperature 10.0" is open_clip's
    logit scale. With `dimensions` an exit's loss is the mean over embeddings cut to each of these widths, normalised again, and
    whole ones (Kusupati et al. 2022).
    """
    scales: Sequence[float | Tensor] = [logit_scale] * len(queries)
    if isinstance(logit_scale, Tensor):
        scales = logit_scale.unbind()
    losses, reported, accuracies, cosines = [], [], [], []
    for queries_PD, targets_PD, scale in zip(queries, targets, scales, strict=True):
        logits_PP = clip_logits(queries_PD, targets_PD, scale, excluded_PP)
        clip = clip_loss(logits_PP)
        whole = clip if kind == CLIP else trained_loss(kind, queries_PD, targets_PD, scale, excluded_PP)
        cut = [
            trained_loss(kind, _leading(queries_PD, width), _leading(targets_PD, width), scale, excluded_PP)
            for width in dimensions
        ]
        losses.append(torch.stack([*cut, whole]).mean() if cut else whole)
        reported.append(clip.detach())
        first_P = logits_PP.detach().argmax(dim=1) == torch.arange(len(logits_PP), device=logits_PP.device)
        accuracies.append(first_P.float().mean())
        cosines.append(mean_cosine(torch.cat((queries_PD, targets_PD))))
    total = torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()
    losses_E, accuracies_E, cosines_E = (torch.stack(values) for values in (reported, accuracies, cosines))
    return RetrievalLoss(total, losses_E, accuracies_E, cosines_E, guess_loss(excluded_PP))


def _leading(embeddings_PD: Tensor, width: int) -> Tensor:
    return F.normalize(embeddings_PD[:, :width], dim=-1)
