"""The shape of an encoder for arithmetic: the fields that counts need, without transformers or torch."""

from dataclasses import dataclass

from mose.model.model_config import ModelConfig


@dataclass(frozen=True)
class EncoderShape:
    """The fields of `ModularStarEncoderConfig` that counts of parameters and operations read; same names, same values."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    conditional_size: int
    exit_layers: tuple[int, ...]
    norm_after_last_layer: bool

    @classmethod
    def of(cls, model: ModelConfig) -> "EncoderShape":
        """The shape of a run's model."""
        return cls(
            vocab_size=model.vocabulary_size,
            hidden_size=model.width,
            intermediate_size=model.feed_forward_width,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.num_key_value_heads,
            conditional_size=model.layer_index_width,
            exit_layers=tuple(model.exit_layers),
            norm_after_last_layer=model.norm_after_last_layer,
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads
