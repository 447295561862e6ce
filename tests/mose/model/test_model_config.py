"""Covers the model section of a config: defaults are the paper's, wrong shapes are refused in one line."""

from typing import Any

import pytest

from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.model_config import ModelConfig


def test_defaults_are_the_published_configuration() -> None:
    assert ModularStarEncoderConfig(**ModelConfig().hugging_face()).to_dict() == ModularStarEncoderConfig().to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_layers": (4, 40)}, "model.exit_layers: exit 40 is deeper than the model"),
        ({"exit_layers": (9, 4, 36)}, "model.exit_layers"),
        ({"exit_layers": (0, 36)}, "model.exit_layers: 0"),
        ({"exit_layers": (4, 9)}, "expected model.num_layers"),
        ({"num_heads": 15}, "model.num_heads: 15 does not divide"),
        ({"num_key_value_heads": 3}, "model.num_key_value_heads: 3 does not divide"),
        ({"residual_dropout": 1.5}, "model.residual_dropout: 1.5"),
        ({"width": 1040, "num_heads": 16}, "an even number"),
    ],
)
def test_wrong_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MoseError, match=message):
        ModelConfig(**changes)


@pytest.mark.parametrize(("rows", "padded"), [(49156, 49664), (512, 512), (513, 1024), (1, 512)])
def test_vocabulary_padding_does_not_depend_on_the_layout(rows: int, padded: int) -> None:
    assert ModelConfig(vocabulary_size=rows).padded_vocabulary_size == padded
