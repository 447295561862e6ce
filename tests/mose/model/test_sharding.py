"""Covers the sharding table: every parameter matches exactly one row, cut dimensions divide, unknown names are refused."""

import re

import pytest
import torch

from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder
from mose.model.sharding import SHARDING_TABLE, Sharding, matching_rows, patterns_of, sharding_of


def published_parameters() -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = ModularStarEncoder(ModularStarEncoderConfig(vocab_size=49664))
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def test_every_parameter_matches_exactly_one_row() -> None:
    assert {name: len(matching_rows(name)) for name in published_parameters()} == dict.fromkeys(published_parameters(), 1)


def test_every_row_matches_some_parameter() -> None:
    kinds = [pattern for pattern, _ in SHARDING_TABLE if not any(re.match(pattern, n) for n in published_parameters())]
    assert kinds == []


@pytest.mark.parametrize("tensor_ranks", [2, 4])
def test_cut_dimensions_divide(tensor_ranks: int) -> None:
    for name, shape in published_parameters().items():
        dimension = sharding_of(name).dimension
        assert dimension is None or shape[dimension] % tensor_ranks == 0, name


def test_patterns_end_in_dollar_because_deepspeed_matches_prefixes() -> None:
    assert all(pattern.endswith("$") for pattern, _ in SHARDING_TABLE)


def test_unknown_parameter_is_refused_by_name() -> None:
    with pytest.raises(MoseError, match="starEncoder2.surprise: 0 rows"):
        sharding_of("starEncoder2.surprise")


def test_patterns_by_kind() -> None:
    assert patterns_of(Sharding.ROW) == [pattern for pattern, kind in SHARDING_TABLE if kind is Sharding.ROW]
