"""The model section of a run's configuration: shape, exits and dropout, in the project's own words."""

import math
from dataclasses import dataclass, replace
from typing import Any

from mose.config import require

# 128 (rows that fill a matrix unit) x 4 (the largest tensor-parallel size): the same padding at every size, so that a
# checkpoint can be resumed at another one.
VOCABULARY_MULTIPLE = 512
# The released .018042 at width 1,024, as a share of 1 / sqrt(width).
_DEVIATION_SHARE = 0.018042 * 1024**0.5


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the encoder; defaults are the paper's 1B model (section 3)."""

    vocabulary_size: int = 49156
    """Rows of the embedding that some token may use; 0 takes the tokenizer's own size."""
    width: int = 1024
    """Hidden dimensionality D (paper section 3)."""
    feed_forward_width: int = 12288
    """Width between the two feed-forward layers (paper section 3)."""
    num_layers: int = 36
    """Transformer layers L (paper section 3)."""
    num_heads: int = 16
    """Query heads (paper section 3)."""
    num_key_value_heads: int = 4
    """Key-value heads; the tensor-parallel size must divide it (paper section 3)."""
    exit_layers: tuple[int, ...] = (4, 9, 18, 27, 36)
    """Layers after which the loss is applied, counted from 1; the last is num_layers (paper section 2.2)."""
    layer_index_width: int = 4
    """Width of the embedding that tells the heads which exit a state comes from (released weights); 0: heads without one."""
    norm_after_last_layer: bool = True
    """Whether the deepest exit's state is normalised. The full model's exits above the deepest are raw: false makes a shallow
    model that ends as one of them does."""
    max_length: int = 2048
    """Longest row in tokens (paper section 3.1)."""
    rope_theta: float = 999999.4420358813
    """Base period of the rotary positions; the paper prints 10^6, the released config this (paper section 3)."""
    norm_epsilon: float = 1e-5
    """Epsilon of every LayerNorm (released config)."""
    initializer_range: float = 0.018042
    """Standard deviation of the initial weights (released config); 0: the same share of 1 / sqrt(width) at any width
    (`initial_deviation`)."""
    initialization: str = "normal"
    """Initial weights of the layers: normal (released code), or averaging: attention starts uniform, and `<cls>` as the mean of
    its row (for small models; docs/decisions.md)."""
    attention_dropout: float = 0.1
    """Dropout on attention weights (released config)."""
    residual_dropout: float = 0.1
    """Dropout on what each half-layer adds (released config)."""
    embedding_dropout: float = 0.1
    """Dropout on the embeddings (released config)."""

    def __post_init__(self) -> None:
        exits, depth = self.exit_layers, self.num_layers
        require(self.num_layers > 0, f"model.num_layers: {depth}, expected 1 or more")
        require(len(exits) > 0 and list(exits) == sorted(set(exits)), f"model.exit_layers: {exits}, expected ascending layers")
        require(exits[0] >= 1, f"model.exit_layers: {exits[0]}, expected layers counted from 1")
        require(exits[-1] <= depth, f"model.exit_layers: exit {exits[-1]} is deeper than the model (model.num_layers is {depth})")
        require(exits[-1] == depth, f"model.exit_layers: the deepest exit is {exits[-1]}, expected model.num_layers ({depth})")
        require(self.width % self.num_heads == 0, f"model.num_heads: {self.num_heads} does not divide model.width {self.width}")
        require(
            (self.width // self.num_heads) % 2 == 0,
            f"model.width: {self.width // self.num_heads} a head, expected an even number",
        )
        groups = f"model.num_key_value_heads: {self.num_key_value_heads} does not divide model.num_heads {self.num_heads}"
        require(self.num_key_value_heads > 0 and self.num_heads % self.num_key_value_heads == 0, groups)
        require(self.vocabulary_size >= 0, f"model.vocabulary_size: {self.vocabulary_size}, expected 0 or more")
        require(self.layer_index_width >= 0, f"model.layer_index_width: {self.layer_index_width}, expected 0 or more")
        kinds = ("normal", "averaging")
        require(
            self.initialization in kinds, f"model.initialization: {self.initialization!r}, expected one of {', '.join(kinds)}"
        )
        for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
            require(0 <= getattr(self, name) < 1, f"model.{name}: {getattr(self, name)}, expected a share in [0, 1)")

    def resolve(self, vocabulary_size: int) -> "ModelConfig":
        """The same with what depends on the data set (`vocabulary_size` 0) or on the width (`initializer_range` 0) filled in."""
        deviation = self.initializer_range or initial_deviation(self.width)
        return replace(self, vocabulary_size=self.vocabulary_size or vocabulary_size, initializer_range=deviation)

    @property
    def padded_vocabulary_size(self) -> int:
        """Embedding rows while training: a multiple of 512 at every tensor-parallel size; export cuts them off."""
        return -(-self.vocabulary_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    def hugging_face(self) -> dict[str, Any]:
        """The same shape under the field names of the published config.json."""
        return {
            "vocab_size": self.vocabulary_size,
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward_width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "max_position_embeddings": self.max_length,
            "rope_theta": self.rope_theta,
            "norm_epsilon": self.norm_epsilon,
            "attention_dropout": self.attention_dropout,
            "residual_dropout": self.residual_dropout,
            "embedding_dropout": self.embedding_dropout,
            "initializer_range": self.initializer_range or initial_deviation(self.width),
            "initialization": self.initialization,
            "conditional_size": self.layer_index_width,
            "matryoshka_layers": list(self.exit_layers),
            "norm_after_last_layer": self.norm_after_last_layer,
        }


def initial_deviation(width: int) -> float:
    """Standard deviation .577 / sqrt(width): .018042 at width 1,024 (released config), .051 at 128, .072 at 64.

    A matrix of it gives a normalised input the same size, .577, at any width ("fan-in" scaling; LeCun et al. 1998). With one
    deviation for all widths, layers of a small model begin with smaller outputs than those of a wide one.
    """
    return _DEVIATION_SHARE / math.sqrt(width)
