"""The bag-of-embeddings baseline: the mean of a text's token embeddings, trained as the model is, without any layer.

Letters: N tokens of all rows, R rows (texts), P pairs of a batch, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.batches import BatchOrder, pack_rows
from finetune.evaluation.metrics import RANKS
from finetune.evaluation.ranking import Candidates, rank_embeddings
from finetune.retrieval.loss import clip_logits, clip_loss
from mose.dataset.packed_sequence import TOKENS

_WIDTH, _DEVIATION, _BATCH_PAIRS, _LEARNING_RATE, _LOGIT_SCALE = 128, 0.05, 256, 1e-2, 20.0


class Bag(nn.Module):
    """Normalised means of token embeddings."""

    def __init__(self, vocabulary_size: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.EmbeddingBag(vocabulary_size, _WIDTH, mode="mean")
        with torch.no_grad():
            self.table.weight.normal_(0.0, _DEVIATION, generator=generator)

    def forward(self, rows: Sequence[TOKENS]) -> Tensor:
        """Embeddings [R, D] of token rows."""
        batch = pack_rows(rows)
        return F.normalize(self.table(batch.input_ids_N, batch.cu_seqlens[:-1].long()), dim=-1)


def train_bag(queries: Sequence[TOKENS], codes: Sequence[TOKENS], vocabulary_size: int, steps: int, seed: int) -> Bag:
    """Train on pairs of encoded texts; equal input and seed give equal weights.

    Raises:
        MoseError: there are fewer than two pairs.
    """
    bag = Bag(vocabulary_size, seed)
    optimizer = torch.optim.Adam(bag.parameters(), lr=_LEARNING_RATE)
    pairs = max(2, min(_BATCH_PAIRS, len(queries)))
    order = BatchOrder([False] * len(queries), pairs, seed)
    nothing_PP = torch.zeros(pairs, pairs, dtype=torch.bool)
    for step in range(steps):
        places = order.at(step).text_code
        embedded = bag([queries[place] for place in places]), bag([codes[place] for place in places])
        loss = clip_loss(clip_logits(*embedded, _LOGIT_SCALE, nothing_PP))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return bag


@torch.inference_mode()
def rank_bag(bag: Bag, candidates: Candidates, queries: Sequence[TOKENS], codes: Sequence[TOKENS]) -> RANKS:
    """Rank [Q] of each query's own code by cosine of the bags."""
    tables: list[NDArray[np.float32]] = [bag(rows).numpy() for rows in (queries, codes)]
    return rank_embeddings(candidates, *tables)
