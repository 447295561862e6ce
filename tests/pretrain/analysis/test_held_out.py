"""Covers the held-out report: losses of a random model, levels of counts, Wilson's interval against scipy's."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from mose.checkpoint.converted_checkpoint import random_like, write_checkpoint
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from pretrain.analysis.held_out import evaluate_held_out, wilson_interval
from tests.datasets import make_dataset
from tests.pretrain.cells import tiny_config


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
    assert 0 < report["left_bigram_cross_entropy"] < 1.5 * np.log(shape["vocab_size"])


def test_other_tokenizer_is_refused(dataset: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path, rows=4, vocabulary_size=330)
    shape = ModularStarEncoderConfig(**tiny_config(dataset).model.hugging_face())
    write_checkpoint(tmp_path / "model", random_like(shape, 0), dataset, {})
    with pytest.raises(MoseError, match="tokenizer_fingerprint"):
        evaluate_held_out(tmp_path / "model", other, "held_out", 0, seed=0)
