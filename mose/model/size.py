"""Parameters per exit and floating-point operations per row, computed from the model's shape alone."""

from collections.abc import Sequence
from typing import Protocol


class Shape(Protocol):
    """The fields that the counts read: of `ModularStarEncoderConfig`, or of `mose.model.cost.shape.EncoderShape`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def conditional_size(self) -> int: ...
    @property
    def exit_layers(self) -> Sequence[int]: ...
    @property
    def norm_after_last_layer(self) -> bool: ...


def layer_parameters(config: Shape) -> int:
    """Parameters of one layer: four attention projections, two feed-forward layers, two LayerNorms, all with biases."""
    width, key_value = config.hidden_size, config.num_key_value_heads * config.head_dim
    attention = 2 * (width * width + width) + 2 * (width * key_value + key_value)
    feed_forward = 2 * width * config.intermediate_size + config.intermediate_size + width
    return attention + feed_forward + 4 * width


def encoder_parameters(config: Shape, exit_layer: int) -> int:
    """Parameters of the encoder that ends at `exit_layer`: embedding, its layers, and the final norm if it is the deepest."""
    norm = 2 * config.hidden_size if exit_layer == config.num_hidden_layers and config.norm_after_last_layer else 0
    return config.vocab_size * config.hidden_size + exit_layer * layer_parameters(config) + norm


def head_parameters(config: Shape) -> int:
    """Parameters of pooler, layer-index embedding, MLM head and ICC head."""
    width, wide = config.hidden_size, config.hidden_size + config.conditional_size
    transform = wide * wide + wide + 2 * wide
    decoder = config.vocab_size * wide + config.vocab_size
    return width * width + width + len(config.exit_layers) * config.conditional_size + transform + decoder + 2 * wide + 2


def flops_per_row(config: Shape, exit_layer: int, num_tokens: int) -> int:
    """Forward operations (a multiply-add is 2) of one row of `num_tokens` up to `exit_layer`.

    Matrix products of the layers, 2 x weights per token, and attention's two products, 4 x tokens x width per token; the
    embedding look-up counts as none. Biases, norms and softmax (under 1 % at any width used here) are left out.
    """
    width, key_value = config.hidden_size, config.num_key_value_heads * config.head_dim
    weights = 2 * width * width + 2 * width * key_value + 2 * width * config.intermediate_size
    return exit_layer * num_tokens * (2 * weights + 4 * num_tokens * width)


def head_flops(config: Shape, masked_tokens: int, rows: int) -> int:
    """Forward operations of all exits' heads: MLM transform and decoder on the masked tokens, pooler and ICC head on the rows."""
    width, wide = config.hidden_size, config.hidden_size + config.conditional_size
    predictions = 2 * masked_tokens * wide * (wide + config.vocab_size)
    classification = 2 * rows * (width * width + 2 * wide)
    return len(config.exit_layers) * (predictions + classification)


def training_flops(config: Shape, real_tokens: int, squared_lengths: int, masked_tokens: int, rows: int) -> int:
    """Model operations of one training step: 3 x forward (the backward pass costs twice the forward pass).

    forward = 2 x weights of the layers x real tokens + 4 x L x D x sum of squared row lengths (attention's two products)
    + heads (`head_flops`). Padding is not computed, hence not counted; recomputation is not counted either.
    Equal to torch's FlopCounterMode on matrix products (tests/pretrain/monitoring/test_throughput.py).
    """
    layers = config.num_hidden_layers
    attention = 4 * layers * config.hidden_size
    weights = flops_per_row(config, layers, 1) - attention
    forward = weights * real_tokens + attention * squared_lengths
    return 3 * (forward + head_flops(config, masked_tokens, rows))
