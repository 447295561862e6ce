"""The pass that stops at the deepest exit asked for gives the numbers of the whole model."""

import numpy as np
import pytest
import torch

from finetune.batches import pack_rows
from finetune.device import seeded
from finetune.retrieval.forward import embed_batch
from mose.checkpoint.converted_checkpoint import random_like, retrieval_from_pretrained
from tests.finetune.conftest import tiny_config


@pytest.mark.parametrize("longest", [30, 400])
def test_each_set_of_exits_gives_the_models_own_embeddings(rng: np.random.Generator, longest: int) -> None:
    """Short rows take the padded attention of the layers below, long ones the loop over rows."""
    model = retrieval_from_pretrained(random_like(tiny_config(), seed=1), seed=2).eval()
    rows = [rng.integers(5, 400, size=int(length)).astype(np.uint16) for length in rng.integers(1, longest, size=9)]
    batch = pack_rows(rows)
    with torch.inference_mode():
        whole = dict(
            zip((1, 2, 4), model.embed(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length), strict=True)
        )
        for exits in ((1,), (2,), (4,), (1, 4), (1, 2, 4)):
            for layer, found in zip(exits, embed_batch(model, batch, exits), strict=True):
                assert (found - whole[layer]).abs().max() < 2e-6


def test_no_layer_above_the_deepest_exit_runs(rng: np.random.Generator) -> None:
    model = retrieval_from_pretrained(random_like(tiny_config(), seed=1), seed=2).eval()
    run: list[tuple[int, int]] = []
    for number, layer in enumerate(model.starEncoder2.layers, start=1):
        norm = layer.post_attention_layernorm
        norm.register_forward_pre_hook(lambda _, inputs, number=number: run.append((number, len(inputs[0]))))
    batch = pack_rows([rng.integers(5, 400, size=7).astype(np.uint16) for _ in range(3)])
    embed_batch(model, batch, (1, 2))
    assert run == [(1, 21), (2, 3)]


@pytest.mark.parametrize("longest", [30, 400])
def test_gradients_are_those_of_the_models_own_embeddings(rng: np.random.Generator, longest: int) -> None:
    model = retrieval_from_pretrained(random_like(tiny_config(), seed=1), seed=2).eval()
    rows = [rng.integers(5, 400, size=int(length)).astype(np.uint16) for length in rng.integers(1, longest, size=9)]
    batch = pack_rows(rows)
    directions = torch.randn(3, len(rows), model.config.hidden_size)
    found: list[dict[str, torch.Tensor]] = []
    for embeddings in (
        model.embed(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length),
        embed_batch(model, batch, (1, 2, 4)),
    ):
        model.zero_grad()
        sum((out_BD * of_BD).sum() for out_BD, of_BD in zip(embeddings, directions, strict=True)).backward()  # type: ignore[union-attr]
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).norm() < 1e-5 * gradient.norm() + 1e-6, name


def test_the_same_seed_drops_the_same_with_and_without_gradients(rng: np.random.Generator) -> None:
    """Gradient caching embeds each chunk twice and needs the same numbers twice."""
    shape = tiny_config()
    shape.attention_dropout = shape.residual_dropout = shape.embedding_dropout = 0.2
    model = retrieval_from_pretrained(random_like(shape, seed=1), seed=2).train()
    batch = pack_rows([rng.integers(5, 400, size=int(length)).astype(np.uint16) for length in rng.integers(1, 60, size=9)])
    found = []
    for seed, with_gradient in ((1, True), (1, False), (2, True)):
        with seeded(seed, torch.device("cpu")), torch.set_grad_enabled(with_gradient):
            found.append(torch.stack(embed_batch(model, batch, (1, 2, 4))).detach())
    assert (found[0] - found[1]).abs().max() < 2e-6
    assert (found[0] - found[2]).abs().max() > 1e-2
