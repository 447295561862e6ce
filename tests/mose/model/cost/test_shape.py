"""The light shape against the Hugging Face configuration: the same counts for every shape."""

import subprocess
import sys

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.cost.shape import EncoderShape
from mose.model.model_config import ModelConfig
from mose.model.size import encoder_parameters, flops_per_row, head_parameters

SMALL = ModelConfig(
    vocabulary_size=700,
    width=64,
    feed_forward_width=96,
    num_layers=3,
    num_heads=4,
    num_key_value_heads=2,
    exit_layers=(1, 3),
    layer_index_width=0,
    norm_after_last_layer=False,
)


def test_counts_are_those_of_the_full_configuration() -> None:
    for model in (ModelConfig(), SMALL):
        light, full = EncoderShape.of(model), ModularStarEncoderConfig(**model.hugging_face())
        assert encoder_parameters(light, model.num_layers) == encoder_parameters(full, model.num_layers)
        assert head_parameters(light) == head_parameters(full)
        assert flops_per_row(light, model.num_layers, 48) == flops_per_row(full, model.num_layers, 48)


def test_the_arithmetic_needs_no_torch() -> None:
    code = "import sys, mose.model.cost.memory, mose.model.cost.step; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
