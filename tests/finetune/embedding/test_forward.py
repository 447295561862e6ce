"""The pass that stops at the deepest exit asked for gives the numbers of the whole model."""

import numpy as np
import pytest
import torch

from finetune.batches import pack_rows
from finetune.embedding.forward import embed_batch
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
