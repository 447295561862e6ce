"""Covers the exits' gradients on the trunk against plain autograd: norms, cosines, and their sum, the gradient of the loss."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.initialization import initialize
from mose.model.modeling_mose import ModularStarEncoder
from mose.tokenizer import Tokenizer
from pretrain.analysis.exit_gradients import ExitGradients, exit_gradients
from pretrain.data.loader import BatchPlan, GlobalBatchLoader
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.terms.term import Denominators
from pretrain.model.terms.vocabulary import whole_vocabulary
from pretrain.model.training_model import TrainingModel
from pretrain.storage.local_rows import LocalRows
from tests.pretrain.cells import tiny_config

EXITS, NUM_LAYERS = (1, 2, 4), 4
BLOCKS = ("embedding", "1", "2", "3", "4", "norm")


@pytest.fixture(scope="module")
def model(dataset: Path, tokenizer: Tokenizer) -> TrainingModel:
    config = tiny_config(dataset)
    encoder = ModularStarEncoder(ModularStarEncoderConfig(**config.model.hugging_face()))
    initialize(encoder, 0.08, config.seed)
    return TrainingModel(encoder, whole_vocabulary(tokenizer.vocabulary_size))


@pytest.fixture(scope="module")
def batch(dataset: Path, tokenizer: Tokenizer) -> MicroBatch:
    (batch,) = GlobalBatchLoader(
        LocalRows(dataset, "train"), BatchPlan(1, 6, 6, tokenizer.special, tokenizer.ordinary_ids())
    ).share(0)
    return batch


@pytest.fixture(scope="module")
def found(model: TrainingModel, batch: MicroBatch) -> ExitGradients:
    return exit_gradients(model, batch, EXITS)


def block_of(name: str) -> str | None:
    """The block that a parameter belongs to; None outside the trunk."""
    parts = name.split(".")
    if parts[0] != "starEncoder2":
        return None
    return {"embed_tokens": "embedding", "norm": "norm"}.get(parts[1]) or str(int(parts[2]) + 1)


def gradients_by_hand(model: TrainingModel, batch: MicroBatch) -> list[dict[str, np.ndarray]]:
    """Of each exit and block: the gradient of weight x (MLM + ICC), each a mean, laid end to end; from logits in full."""
    trunk = {name: parameter for name, parameter in model.named_parameters() if block_of(name)}
    states = model.starEncoder2(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length)
    gradients = []
    for index, (layer, state) in enumerate(zip(EXITS, states, strict=True)):
        logits = model.cls.predict_tokens(state, index)[batch.masked_N_indices]
        mixed = model.cls.classify(model.pooler(state[batch.cu_seqlens[1:].long() - 1]), index)
        cross_entropy = torch.nn.functional.cross_entropy
        loss = layer / NUM_LAYERS * (cross_entropy(logits, batch.labels_M) + cross_entropy(mixed, batch.mixed_B))
        grads = torch.autograd.grad(loss, list(trunk.values()), retain_graph=True, allow_unused=True)
        by_block: dict[str, list[np.ndarray]] = {block: [] for block in BLOCKS}
        for (name, parameter), grad in zip(trunk.items(), grads, strict=True):
            whole = torch.zeros_like(parameter) if grad is None else grad
            by_block[str(block_of(name))].append(whole.double().numpy().ravel())
        gradients.append({block: np.concatenate(parts) for block, parts in by_block.items()})
    return gradients


def test_products_equal_autograd_by_hand(found: ExitGradients, model: TrainingModel, batch: MicroBatch) -> None:
    by_hand = gradients_by_hand(model, batch)
    assert found.blocks == BLOCKS
    expected_PEE = np.array([[[mine[block] @ other[block] for other in by_hand] for mine in by_hand] for block in BLOCKS])
    assert np.allclose(found.products_PEE, expected_PEE, rtol=1e-4, atol=1e-6 * expected_PEE.max())
    assert np.allclose(found.trunk_norms_E, [np.linalg.norm(np.concatenate(list(mine.values()))) for mine in by_hand], rtol=1e-5)


def test_the_exits_gradients_add_up_to_the_losss_gradient(found: ExitGradients, model: TrainingModel, batch: MicroBatch) -> None:
    share, _ = model(batch, Denominators(batch.num_masked, batch.num_rows))
    trunk = [(str(block_of(name)), parameter) for name, parameter in model.named_parameters() if block_of(name)]
    grads = torch.autograd.grad(share, [parameter for _, parameter in trunk])
    for block, products_EE in zip(found.blocks, found.products_PEE, strict=True):
        squared = sum(float(g.double().square().sum()) for (name, _), g in zip(trunk, grads, strict=True) if name == block)
        assert float(products_EE.sum()) == pytest.approx(squared, rel=1e-4)


def test_cosines_are_of_the_blocks_that_both_reach(found: ExitGradients) -> None:
    assert [[norm > 0 for norm in row] for row in found.norms_EP.tolist()] == [
        [True, True, False, False, False, False],
        [True, True, True, False, False, False],
        [True, True, True, True, True, True],
    ]
    products_PEE = found.products_PEE[:2]  # the first exit reaches the embedding and layer 1
    lengths = np.sqrt(products_PEE[:, 0, 0].sum() * products_PEE[:, 2, 2].sum())
    assert found.cosines_EE[0, 2] == pytest.approx(products_PEE[:, 0, 2].sum() / lengths)
    assert np.allclose(np.diag(found.cosines_EE), 1.0)
    assert np.abs(found.cosines_EE).max() <= 1 + 1e-12
    assert np.isnan(found.cosines_PEE[2, 0, 2])
    assert found.cosines_PEE[2, 1, 2] == pytest.approx(
        found.products_PEE[2, 1, 2] / np.sqrt(found.products_PEE[2, 1, 1] * found.products_PEE[2, 2, 2])
    )


def test_the_model_is_left_as_it_was(model: TrainingModel, batch: MicroBatch) -> None:
    before, trunk = [parameter.clone() for parameter in model.parameters()], model.starEncoder2
    exit_gradients(model, batch, EXITS)
    assert model.starEncoder2 is trunk
    assert model.training
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))
    assert not any(module._forward_pre_hooks for module in model.modules())
