"""Covers the held-out report: losses equal transformers-style cross-entropy, unigram bounds against scipy, Wilson's interval."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import entropy as scipy_entropy

from mose.checkpoint.converted_checkpoint import random_like, write_checkpoint
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from pretrain.analysis.held_out import cross_entropy_of_frequencies, entropy, evaluate_held_out, token_counts, wilson_interval
from pretrain.storage.local_rows import LocalRows
from tests.datasets import make_dataset
from tests.pretrain.cells import tiny_config


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40).filter(lambda counts: sum(counts) > 0))
def test_entropy_equals_scipys_and_bounds_every_other_unigram(counts: list[int]) -> None:
    counts_V = np.array(counts)
    assert entropy(counts_V) == pytest.approx(float(scipy_entropy(counts_V)), abs=1e-12)
    assert cross_entropy_of_frequencies(counts_V, counts_V[::-1].copy()) >= entropy(counts_V) - 1e-12


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 10), (57, 100), (100, 100)])
def test_interval_equals_scipys(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_report_of_a_random_model_is_near_uniform(dataset: Path, tmp_path: Path) -> None:
    shape = {**tiny_config(dataset).model.hugging_face(), "initializer_range": 0.001}
    write_checkpoint(tmp_path / "model", random_like(ModularStarEncoderConfig(**shape), 0), dataset, {})
    report = evaluate_held_out(tmp_path / "model", dataset, "held_out", 0, seed=0)
    assert report["rows"] == 10
    assert report["exits"].keys() == {"01", "02", "04"}
    for values in report["exits"].values():
        assert values["mlm"] == pytest.approx(np.log(shape["vocab_size"]), rel=0.02)
        assert values["icc_interval"][0] <= values["icc_accuracy"] <= values["icc_interval"][1]
    assert 0.5 <= report["icc_majority_rate"] <= 1
    assert report["unigram_cross_entropy"] <= report["unigram_cross_entropy_by_training_frequencies"]


def test_counts_are_those_of_real_tokens(dataset: Path) -> None:
    rows = LocalRows(dataset, "held_out")
    assert token_counts(rows, rows.table.manifest.vocabulary_size).sum() == rows.table.manifest.tokens("held_out")


def test_other_tokenizer_is_refused(dataset: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path, rows=4, vocabulary_size=330)
    shape = ModularStarEncoderConfig(**tiny_config(dataset).model.hugging_face())
    write_checkpoint(tmp_path / "model", random_like(shape, 0), dataset, {})
    with pytest.raises(MoseError, match="tokenizer_fingerprint"):
        evaluate_held_out(tmp_path / "model", other, "held_out", 0, seed=0)
