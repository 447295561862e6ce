"""The learning curve of the in-context task: its model learns planted topics, its cosines see alternation, it has a plot."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.in_context_curve import (
    Split,
    accuracy,
    draw,
    lexical_features,
    repositories_of,
    threshold_accuracy,
    token_shares,
    train_means,
)
from data_prep.sources.repositories import HELD_OUT, split_of
from mose.dataset.packed_sequence import SpecialTokens

SPECIAL = SpecialTokens(pad=0, unk=1, sep=2, cls=3, mask=4)
TOPICS, WORDS, SNIPPETS, LENGTH = 6, 20, 6, 8
VOCABULARY = 5 + TOPICS * WORDS


def planted_rows(seed: int, rows: int) -> Split:
    """Rows of snippets of one topic, or of two in turn."""
    random = np.random.default_rng(seed)
    mixed_R = random.random(rows) < 0.5
    tokens = []
    for mixed in mixed_R:
        pair = random.choice(TOPICS, 2, replace=False)
        row = [0]
        for snippet in range(SNIPPETS):
            topic = pair[snippet % 2 if mixed else 0]
            row += [2, *(5 + topic * WORDS + random.integers(WORDS, size=LENGTH))]
        tokens.append([*row, 3])
    return Split(np.array(tokens, dtype=np.uint16), mixed_R)


def test_the_model_of_row_means_learns_planted_topics() -> None:
    train, held_out = planted_rows(0, 400), planted_rows(1, 200)
    shares_RV = token_shares(train.tokens_RT, SPECIAL, VOCABULARY)
    torch.testing.assert_close(shares_RV.sum(1), torch.ones(400))
    assert not shares_RV[:, :4].any()
    labels_R = torch.from_numpy(train.mixed_R.astype(np.int64))
    model = train_means(shares_RV, labels_R, width=32, rows=12800, seed=0)
    held_out_RV = token_shares(held_out.tokens_RT, SPECIAL, VOCABULARY)
    assert accuracy(model, held_out_RV, torch.from_numpy(held_out.mixed_R.astype(np.int64))) > 0.75
    shuffled = labels_R[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    without = train_means(shares_RV, shuffled, width=32, rows=12800, seed=0)
    assert accuracy(without, held_out_RV, torch.from_numpy(held_out.mixed_R.astype(np.int64))) < 0.65


def test_cosines_of_neighbouring_snippets_tell_rows_in_which_two_topics_alternate() -> None:
    train, held_out = planted_rows(2, 200), planted_rows(3, 200)
    features, others = (lexical_features(split, SPECIAL, np.ones(VOCABULARY)) for split in (train, held_out))
    for name in ("neighbouring snippets", "all pairs of snippets"):
        assert threshold_accuracy(features[name], train.mixed_R, others[name], held_out.mixed_R) > 0.95
        assert others[name][held_out.mixed_R].mean() < others[name][~held_out.mixed_R].mean()


def test_repositories_keep_their_split_and_small_ones_are_left_out(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"repository-{i}").mkdir()
        (tmp_path / f"repository-{i}" / "a.py").write_text("x = 1\n" * (4000 if i else 10))
    train, held_out = repositories_of(tmp_path)
    assert len(train) + len(held_out) == 29
    assert held_out
    assert all(split_of(folder.name, 0, 0.15) == HELD_OUT for folder in held_out)
    assert repositories_of(tmp_path) == (train, held_out)


def test_the_plot_has_every_point(tmp_path: Path) -> None:
    point = {
        "repositories": 50,
        "tf_idf": {"neighbouring snippets": 0.7, "all pairs of snippets": 0.6},
        "row_means": {"0": {"held_out": 0.56}},
        "encoder": {"0": {"exits": {"03": {"icc_accuracy": 0.55, "icc_interval": [0.53, 0.57]}}}},
    }
    draw({"majority": 0.5, "points": [point, point | {"repositories": 100, "encoder": {}}]}, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
