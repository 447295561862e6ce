"""What a row costs: layers, attention and heads, where the heads run on the masked share of the tokens."""

import numpy as np
import pytest

from mose.dataset.packed_sequence import SpecialTokens
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.size import flops_per_row, head_flops
from pretrain.config.run import DataConfig, PretrainConfig
from pretrain.data.row_cost import RowCost
from pretrain.train import batch_plan

SHAPE = ModularStarEncoderConfig(
    vocab_size=512, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
    matryoshka_layers=[2, 4],
)  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.15, 0.3, 1.0])
@pytest.mark.parametrize("num_tokens", [1, 7, 1000])
def test_a_row_costs_its_layers_and_the_heads_on_its_masked_tokens(share: float, num_tokens: int) -> None:
    layers, heads = flops_per_row(SHAPE, 4, num_tokens), head_flops(SHAPE, num_tokens, 0)
    (cost,) = RowCost.of_model(SHAPE, share).of(np.array([num_tokens])).tolist()
    # Whole numbers: what is rounded is less than one operation per token.
    assert cost == pytest.approx(layers + share * heads, abs=num_tokens)


def test_masking_more_raises_the_cost_per_token_and_not_that_of_attention() -> None:
    few, many = RowCost.of_model(SHAPE, 0.1), RowCost.of_model(SHAPE, 0.4)
    assert many.per_token - few.per_token == pytest.approx(0.3 * head_flops(SHAPE, 1, 0), abs=1)
    assert many.per_squared_token == few.per_squared_token > 0


def test_by_default_a_row_costs_its_tokens() -> None:
    assert RowCost().of(np.array([0, 3, 5])).tolist() == [0, 3, 5]


def test_a_run_balances_by_the_share_that_it_masks() -> None:
    special = SpecialTokens(0, 1, 2, 3, 4)
    for share in (0.15, 0.4):
        config = PretrainConfig(data=DataConfig(masking_share=share))
        plan = batch_plan(config, special, np.arange(5, 300, dtype=np.uint16), 0, 1)
        shape = ModularStarEncoderConfig(**config.model.hugging_face())
        assert plan.row_cost == RowCost.of_model(shape, share)
        assert plan.masked_share == share
