"""Parameters per exit and floating-point operations per row, computed from the model's shape alone."""

from mose.model.configuration_mose import ModularStarEncoderConfig


def layer_parameters(config: ModularStarEncoderConfig) -> int:
    """Parameters of one layer: four attention projections, two feed-forward layers, two LayerNorms, all with biases."""
    width, key_value = config.hidden_size, config.num_key_value_heads * config.head_dim
    attention = 2 * (width * width + width) + 2 * (width * key_value + key_value)
    feed_forward = 2 * width * config.intermediate_size + config.intermediate_size + width
    return attention + feed_forward + 4 * width


def encoder_parameters(config: ModularStarEncoderConfig, exit_layer: int) -> int:
    """Parameters of the encoder that ends at `exit_layer`: embedding, its layers, and the final norm if it is the deepest."""
    norm = 2 * config.hidden_size if exit_layer == config.num_hidden_layers and config.norm_after_last_layer else 0
    return config.vocab_size * config.hidden_size + exit_layer * layer_parameters(config) + norm


def head_parameters(config: ModularStarEncoderConfig) -> int:
    """Parameters of pooler, layer-index embedding, MLM head and ICC head."""
    width, wide = config.hidden_size, config.hidden_size + config.conditional_size
    transform = wide * wide + wide + 2 * wide
    decoder = config.vocab_size * wide + config.vocab_size
    return width * width + width + len(config.exit_layers) * config.conditional_size + transform + decoder + 2 * wide + 2


def flops_per_row(config: ModularStarEncoderConfig, exit_layer: int, num_tokens: int) -> int:
    """Forward operations (a multiply-add is 2) of one row of `num_tokens` up to `exit_layer`.

    Matrix products of the layers, 2 x weights per token, and attention's two products, 4 x tokens x width per token; the
    embedding look-up counts as none. Biases, norms and softmax (under 1 % at any width used here) are left out.
    """
    width, key_value = config.hidden_size, config.num_key_value_heads * config.head_dim
    weights = 2 * width * width + 2 * width * key_value + 2 * width * config.intermediate_size
    return exit_layer * num_tokens * (2 * weights + 4 * num_tokens * width)


def head_flops(config: ModularStarEncoderConfig, masked_tokens: int, rows: int) -> int:
    """Forward operations of all exits' heads: MLM transform and decoder on the masked tokens, pooler and ICC head on the rows."""
    width, wide = config.hidden_size, config.hidden_size + config.conditional_size
    predictions = 2 * masked_tokens * wide * (wide + config.vocab_size)
    classification = 2 * rows * (width * width + 2 * wide)
    return len(config.exit_layers) * (predictions + classification)
