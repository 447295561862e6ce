"""The contrastive loss against numpy and sentence-transformers, its weights, and which cells are no negatives."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finetune.config import CLIP, LOSSES, ONE_WAY, SAME_SIDE
from finetune.retrieval.loss import clip_logits, clip_loss, false_negatives, guess_loss, multi_exit_loss, trained_loss
from mose.model.exits import exit_weights

NONE_4 = torch.zeros(4, 4, dtype=torch.bool)


def embeddings(seed: int, count: int = 4) -> torch.Tensor:
    return F.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def numpy_clip(queries: np.ndarray, targets: np.ndarray, scale: float) -> float:
    logits = scale * queries.astype(np.float64) @ targets.astype(np.float64).T
    probabilities = np.exp(logits)
    rows = -np.log(np.diag(probabilities / probabilities.sum(axis=1, keepdims=True)))
    columns = -np.log(np.diag(probabilities / probabilities.sum(axis=0, keepdims=True)))
    return float((rows.mean() + columns.mean()) / 2)


def test_equals_the_formula_in_numpy():
    queries, targets = embeddings(1), embeddings(2)
    ours = clip_loss(clip_logits(queries, targets, 10.0, NONE_4))
    assert ours.item() == pytest.approx(numpy_clip(queries.numpy(), targets.numpy(), 10.0), rel=1e-6)


def test_equals_sentence_transformers_symmetric_loss():
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    theirs = losses.MultipleNegativesSymmetricRankingLoss(model=torch.nn.Identity(), scale=10.0)
    queries, targets = embeddings(3), embeddings(4)
    expected = theirs.compute_loss_from_embeddings([queries, targets], labels=None)
    ours = clip_loss(clip_logits(queries, targets, 10.0, NONE_4))
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)


def test_one_way_equals_sentence_transformers_ranking_loss():
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    theirs = losses.MultipleNegativesRankingLoss(model=torch.nn.Identity(), scale=10.0)
    queries, targets = embeddings(3), embeddings(4)
    expected = theirs.compute_loss_from_embeddings([queries, targets], labels=None)
    assert trained_loss(ONE_WAY, queries, targets, 10.0, NONE_4).item() == pytest.approx(expected.item(), rel=1e-6)


def test_same_side_negatives_are_all_texts_but_the_text_itself_and_other_answers():
    queries, targets = embeddings(3), embeddings(4)
    excluded = NONE_4.clone()
    excluded[0, 2] = excluded[2, 0] = True
    expected = []
    for own, other in ((queries, targets), (targets, queries)):
        for i in range(4):
            left = [j for j in range(4) if j != i and not excluded[i, j]]
            logits = 10 * torch.cat((own[i] @ other[[i, *left]].T, own[i] @ own[left].T))
            expected.append((logits.logsumexp(0) - logits[0]).item())
    found = trained_loss(SAME_SIDE, queries, targets, 10.0, excluded)
    assert found.item() == pytest.approx(sum(expected) / 8, rel=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_leading_dimensions_are_trained_beside_the_whole(kind: str):
    queries, targets = embeddings(5), embeddings(6)
    report = multi_exit_loss([queries], [targets], [0.5], 10.0, NONE_4, kind, (2, 5))
    parts = [[F.normalize(side[:, :width], dim=-1) for side in (queries, targets)] for width in (2, 5, 8)]
    expected = sum(trained_loss(kind, *part, 10.0, NONE_4).item() for part in parts) / 3
    assert report.total.item() == pytest.approx(0.5 * expected, rel=1e-6)
    assert report.losses_E.tolist() == pytest.approx([numpy_clip(queries.numpy(), targets.numpy(), 10.0)], rel=1e-6)


def test_each_exit_may_have_its_own_logit_scale_with_gradient():
    queries, targets = [embeddings(5), embeddings(6)], [embeddings(7), embeddings(8)]
    scales = torch.tensor([3.0, 20.0], requires_grad=True)
    report = multi_exit_loss(queries, targets, [1.0, 1.0], scales, NONE_4)
    expected = [numpy_clip(q.numpy(), t.numpy(), s) for q, t, s in zip(queries, targets, (3.0, 20.0), strict=True)]
    assert report.losses_E.tolist() == pytest.approx(expected, rel=1e-6)
    report.total.backward()
    assert scales.grad is not None and (scales.grad != 0).all()


def test_a_guess_is_the_loss_of_equal_embeddings():
    keys = torch.tensor([1, 1, 1, 2])
    excluded = false_negatives(torch.arange(4), torch.arange(10, 14), keys)
    point = F.normalize(torch.ones(4, 8), dim=-1)
    report = multi_exit_loss([point], [point], [1.0], 10.0, excluded)
    assert report.guess.item() == pytest.approx(report.losses_E.item(), rel=1e-6)
    assert guess_loss(NONE_4).item() == pytest.approx(np.log(4), rel=1e-6)
    assert report.guess < guess_loss(NONE_4) and multi_exit_loss([point], [point], [1.0], 10.0, NONE_4, CLIP).guess > report.guess


def test_exits_are_weighted_by_their_depth_and_summed():
    assert list(exit_weights([4, 9, 18, 27, 36], 36)) == [4 / 36, 0.25, 0.5, 0.75, 1.0]
    queries, targets = [embeddings(5), embeddings(6)], [embeddings(7), embeddings(8)]
    report = multi_exit_loss(queries, targets, [0.25, 1.0], 10.0, NONE_4)
    singles = [numpy_clip(q.numpy(), t.numpy(), 10.0) for q, t in zip(queries, targets, strict=True)]
    assert report.losses_E.tolist() == pytest.approx(singles, rel=1e-6)
    assert report.total.item() == pytest.approx(0.25 * singles[0] + singles[1], rel=1e-6)


def test_accuracy_is_the_share_of_queries_that_rank_their_target_first():
    eye = torch.eye(4)
    swapped = eye[[1, 0, 2, 3]]
    assert multi_exit_loss([eye], [swapped], [1.0], 10.0, NONE_4).accuracies_E.tolist() == [0.5]


def test_cells_of_equal_texts_are_no_negatives():
    # Pairs 0 and 1 share the query; 1 and 2 the target; the query of 3 is the target of 0.
    excluded = false_negatives(torch.tensor([10, 10, 12, 20]), torch.tensor([20, 21, 21, 23]), torch.arange(4))
    expected = torch.zeros(4, 4, dtype=torch.bool)
    for i, j in ((0, 1), (1, 2), (0, 3)):
        expected[i, j] = expected[j, i] = True
    assert torch.equal(excluded, expected)


def test_pairs_of_one_description_are_no_negatives():
    queries, targets = torch.arange(4), torch.arange(10, 14)
    excluded = false_negatives(queries, targets, torch.tensor([7, 8, 7, 9]))
    assert excluded.nonzero().tolist() == [[0, 2], [2, 0]]


def test_an_excluded_cell_takes_no_part():
    queries, targets = embeddings(9), embeddings(10)
    excluded = false_negatives(torch.tensor([1, 1, 3, 4]), torch.tensor([11, 12, 13, 14]), torch.arange(4))
    queries.requires_grad_()
    targets.requires_grad_()
    loss = clip_loss(clip_logits(queries, targets, 10.0, excluded))
    logits = 10 * queries.detach() @ targets.detach().T
    kept = [torch.cat((row[:i][~excluded[i, :i]], row[i + 1 :][~excluded[i, i + 1 :]])) for i, row in enumerate(logits)]
    rows = [torch.logsumexp(torch.cat((logits[i, i : i + 1], kept[i])), 0) - logits[i, i] for i in range(4)]
    kept = [torch.cat((c[:i][~excluded[:i, i]], c[i + 1 :][~excluded[i + 1 :, i]])) for i, c in enumerate(logits.T)]
    columns = [torch.logsumexp(torch.cat((logits[i, i : i + 1], kept[i])), 0) - logits[i, i] for i in range(4)]
    assert loss.item() == pytest.approx(((sum(rows) + sum(columns)) / 8).item(), rel=1e-6)
    loss.backward()
    assert torch.isfinite(queries.grad).all() and torch.isfinite(targets.grad).all()
