"""The bag of embeddings learns what its texts share, and is a function of its seed."""

import numpy as np
import torch

from finetune.evaluation.baselines.bag import rank_bag, train_bag
from finetune.evaluation.baselines.pairs import encode_pairs
from finetune.evaluation.ranking import draw_candidates
from mose.tokenizer import Tokenizer
from tests.finetune.conftest import make_pairs


def test_it_learns_and_repeats(tokenizer: Tokenizer):
    pairs = make_pairs(144)
    rows = encode_pairs(tokenizer, pairs, pairs, 128)
    candidates = draw_candidates(np.arange(144), 144, 143, seed=0)
    bags = [train_bag(*rows, tokenizer.vocabulary_size, steps, seed=0) for steps in (0, 40, 40)]
    found = [(1 / rank_bag(bag, candidates, *rows)).mean() for bag in bags]
    assert found[1] > 2 * found[0]
    assert torch.equal(bags[1].table.weight, bags[2].table.weight)
