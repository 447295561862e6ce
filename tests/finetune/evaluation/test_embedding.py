"""Embeddings of all exits in one pass: the same whatever the chunks, in the order of the rows, normalised."""

import numpy as np
import pytest
import torch

from finetune.evaluation.embedding import embed_rows
from mose.checkpoint.converted_checkpoint import random_like, retrieval_from_pretrained
from tests.finetune.conftest import tiny_config


def test_chunks_do_not_change_embeddings_and_each_row_is_run_once(rng: np.random.Generator):
    model = retrieval_from_pretrained(random_like(tiny_config(0.5), seed=1), seed=2)
    rows = [rng.integers(5, 400, size=int(length)).astype(np.uint16) for length in rng.integers(3, 30, size=17)]
    seen: list[int] = []
    model.starEncoder2.layers[0].self_attn.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[2]) - 1))
    alone = embed_rows(model, rows, chunk_tokens=1, device=torch.device("cpu"), bf16=False)
    assert seen == [1] * 17
    together = embed_rows(model, rows, chunk_tokens=200, device=torch.device("cpu"), bf16=False)
    assert sum(seen) == 34 and len(alone) == 3
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one - other).max() < 1e-5
        assert np.linalg.norm(one, axis=1) == pytest.approx(np.ones(17), rel=1e-5)
    padded = torch.zeros(1, 40, dtype=torch.long)
    padded[0, 40 - len(rows[5]) :] = torch.from_numpy(rows[5].astype(np.int64))
    with torch.inference_mode():
        output = model(input_ids=padded, attention_mask=(padded > 0).long())
    for table, reference in zip(together, output.projected_pooled_normalized, strict=True):
        assert np.abs(table[5] - reference[0].numpy()).max() < 1e-5
