"""Gradient caching: the cached gradient equals that of one big batch, at several exits, with dropout and negatives."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from finetune.batches import PackedBatch, chunks_by_length, pack_rows
from finetune.device import seeded
from finetune.retrieval.gradient_cache import Chunk, backward, gather_chunks
from finetune.retrieval.loss import multi_exit_loss
from mose.checkpoint.converted_checkpoint import random_like, retrieval_from_pretrained
from mose.model.modeling_mose import ModularStarEncoderForRetrieval
from tests.finetune.conftest import tiny_config

PAIRS = 6
WEIGHTS = (0.25, 0.5, 1.0)


def token_rows(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 400, size=int(length)).astype(np.uint16) for length in rng.integers(3, 20, size=count)]


def model_of(dropout: float) -> ModularStarEncoderForRetrieval:
    return retrieval_from_pretrained(random_like(tiny_config(dropout), seed=1), seed=2).double().train()


def chunks_of(rows: Sequence[np.ndarray], size: int) -> list[Chunk]:
    places = chunks_by_length([len(row) for row in rows], size)
    return [
        Chunk(torch.from_numpy(place), pack_rows([rows[i] for i in place]), seed=100 + number)
        for number, place in enumerate(places)
    ]


def embed_with(model: ModularStarEncoderForRetrieval):
    def embed(batch: PackedBatch) -> list[torch.Tensor]:
        return model.embed(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length)

    return embed


def loss(embeddings: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Every other pair is a negative of each; a fixed mask leaves one pair out."""
    excluded = torch.zeros(PAIRS, PAIRS, dtype=torch.bool)
    excluded[0, 1] = excluded[1, 0] = True
    report = multi_exit_loss([t[:PAIRS] for t in embeddings], [t[PAIRS:] for t in embeddings], WEIGHTS, 10.0, excluded)
    return report.total, report.losses_E


def gradients(model: ModularStarEncoderForRetrieval) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def uncached(model: ModularStarEncoderForRetrieval, chunks: list[Chunk]) -> torch.Tensor:
    """All chunks with their graphs in memory at once: what caching must equal."""
    parts = []
    for chunk in chunks:
        with seeded(chunk.seed, torch.device("cpu")):
            parts.append([table.float() for table in embed_with(model)(chunk.batch)])
    value, report = loss(gather_chunks(parts, chunks))
    value.backward()
    return report


@pytest.mark.parametrize(("dropout", "size"), [(0.0, 1), (0.0, 5), (0.3, 5), (0.3, 12)])
def test_the_cached_gradient_is_the_gradient(dropout: float, size: int):
    rows = token_rows(2 * PAIRS)
    cached, plain = model_of(dropout), model_of(dropout)
    chunks = chunks_of(rows, size)
    report = backward(embed_with(cached), chunks, loss)
    assert torch.allclose(report, uncached(plain, chunks), rtol=1e-6)
    for name, gradient in gradients(plain).items():
        difference = (gradients(cached)[name] - gradient).abs().max()
        assert difference <= 1e-6 * gradient.abs().max() + 1e-12, name


def test_the_gradient_does_not_depend_on_the_chunks():
    found = []
    for size in (1, 4, 2 * PAIRS):
        model = model_of(0.0)
        backward(embed_with(model), chunks_of(token_rows(2 * PAIRS), size), loss)
        found.append(gradients(model))
    for one, other in itertools.pairwise(found):
        for name, gradient in one.items():
            assert (other[name] - gradient).abs().max() <= 1e-6 * gradient.abs().max() + 1e-12, name


def test_the_last_chunk_is_embedded_once_and_every_other_twice():
    model, seen = model_of(0.3), []

    def counted(batch: PackedBatch) -> list[torch.Tensor]:
        seen.append((batch.max_length, torch.is_grad_enabled()))
        return embed_with(model)(batch)

    chunks = chunks_of(token_rows(2 * PAIRS), 5)
    backward(counted, chunks, loss)
    first, second, last = (chunk.batch.max_length for chunk in chunks)
    assert seen == [(first, False), (second, False), (last, True), (first, True), (second, True)]


def test_every_exit_and_its_head_receives_a_gradient():
    model = model_of(0.0)
    backward(embed_with(model), chunks_of(token_rows(2 * PAIRS), 4), loss)
    for head in model.projection_heads:
        assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())


def test_masks_are_drawn_anew_for_another_seed_and_the_outer_generator_is_untouched():
    model = model_of(0.5)
    rows = token_rows(4)
    batch = pack_rows(rows)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    outputs = []
    for seed in (1, 1, 2):
        with seeded(seed, torch.device("cpu")):
            outputs.append(embed_with(model)(batch)[-1])
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    assert torch.equal(before, torch.random.get_rng_state())
