"""The Hugging Face configuration of a MoSE encoder, with the field names of the published checkpoint."""

from typing import Any, ClassVar

from transformers import PretrainedConfig


class ModularStarEncoderConfig(PretrainedConfig):
    """Shape of a multi-exit encoder; defaults are the published 1B model (its config.json)."""

    model_type = "ModularStarEncoder"
    # transformers' Trainer takes what follows the loss as the predictions; these are no part of them.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["exit_logits", "hidden_states"]

    def __init__(
        self,
        vocab_size: int = 49156,
        hidden_size: int = 1024,
        intermediate_size: int = 12288,
        num_hidden_layers: int = 36,
        num_attention_heads: int = 16,
        num_key_value_heads: int = 4,
        max_position_embeddings: int = 2048,
        rope_theta: float = 999999.4420358813,
        norm_epsilon: float = 1e-5,
        attention_dropout: float = 0.1,
        residual_dropout: float = 0.1,
        embedding_dropout: float = 0.1,
        initializer_range: float = 0.018042,
        initialization: str = "normal",
        conditional_size: int = 4,
        matryoshka_layers: list[int] | None = None,
        norm_after_last_layer: bool = True,
        sequence_task: str = "icc",
        exit_layer: int | None = None,
        languages: list[str] | None = None,
        pad_token_id: int = 0,
        **kwargs: Any,
    ):
        """`matryoshka_layers` are the exits, counted in layers from 1; the last one is the model's depth.

        `norm_after_last_layer` is false in a model cut at an early exit: only the full model's last state is normalised.
        `conditional_size` 0 is a model whose heads get no layer index. `sequence_task` is what the two-way head was trained on:
        `icc` and `nsp` (class 1: two repositories), `none` (it was not).
        `initialization` is the kind of initial weights that were drawn, so that a control can be drawn alike.
        `languages` are those that a retrieval model was fine-tuned on, in the lower case of its instructions.
        `exit_layer` is set by the caller who opens a checkpoint of all exits and wants one: deeper layers are not built.
        """
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.norm_epsilon = norm_epsilon
        self.attention_dropout = attention_dropout
        self.residual_dropout = residual_dropout
        self.embedding_dropout = embedding_dropout
        self.initializer_range = initializer_range
        self.initialization = initialization
        self.conditional_size = conditional_size
        self.matryoshka_layers = matryoshka_layers or [4, 9, 18, 27, 36]
        self.norm_after_last_layer = norm_after_last_layer
        self.sequence_task = sequence_task
        self.exit_layer = exit_layer
        self.languages = languages
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(pad_token_id=pad_token_id, **kwargs)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def depth(self) -> int:
        """Layers that are built and run: all of them, or those up to `exit_layer`.

        Raises:
            ValueError: `exit_layer` is none of the exits.
        """
        if self.exit_layer is None:
            return self.num_hidden_layers
        if self.exit_layer not in self.exit_layers:
            raise ValueError(f"exit_layer: {self.exit_layer}, expected one of the model's exits {self.exit_layers}")
        return self.exit_layer

    @property
    def exit_layers(self) -> list[int]:
        """The exits of the whole model, counted in layers from 1, shallow to deep: `matryoshka_layers` of config.json."""
        return self.matryoshka_layers

    @property
    def computed_exit_layers(self) -> list[int]:
        """The exits whose states are computed, shallow to deep."""
        return [layer for layer in self.exit_layers if layer <= self.depth]
