"""The multi-exit encoder as one plain PyTorch model, which is also the Hugging Face model of a converted checkpoint.

Parallelism is applied from outside, at four points: the number of heads follows from the width of the projections, every
exit's state passes through an `nn.Identity`, `cls.predictions.bias` is a bare parameter named in the sharding table, and what
attention does between its projections is a module of its own, without parameters.

Letters: B rows, T slots, N real tokens of all rows, D width, H heads, K head width, V vocabulary, E exits, M chosen tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .attention_mose import attention, eager_attention, padded_attention, rotary_angles, rotate, varlen_attention
from .configuration_mose import ModularStarEncoderConfig
from .rows_mose import DenseRows, Rows, unpad

Config = ModularStarEncoderConfig
# transformers' name for its default (None: a module without a model); here it also picks the varlen kernels of CUDA.
OWN_ATTENTION = ("sdpa", None)


class StarEncoder2AttentionCore(nn.Module):
    """Attention of rotated queries and keys: the place where training seeds dropout, recomputes, or leaves compiled code."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.dropout = config.attention_dropout
        self.is_causal = False

    def forward(self, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, max_length: int) -> Tensor:
        """Bounds of the rows in `cu_seqlens` [B + 1]; a mask [B, T] there means N = B * T tokens, padding among them."""
        dropout = self.dropout if self.training else 0.0
        implementation = self.config._attn_implementation
        if implementation in OWN_ATTENTION:
            return attention(q_NHK, k_NGK, v_NGK, cu_seqlens, max_length, dropout)
        function = eager_attention if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
        if cu_seqlens.ndim == 1:
            return varlen_attention(partial(function, self), q_NHK, k_NGK, v_NGK, cu_seqlens, max_length, dropout)
        return padded_attention(partial(function, self), q_NHK, k_NGK, v_NGK, cu_seqlens, dropout)


class StarEncoder2Attention(nn.Module):
    """Grouped-query self-attention with rotary positions, bidirectional."""

    def __init__(self, config: Config):
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size)
        self.core = StarEncoder2AttentionCore(config)

    def forward(self, x_ND: Tensor, rotary: tuple[Tensor, Tensor], cu_seqlens: Tensor, max_length: int) -> Tensor:
        q, k, v = (projection(x_ND) for projection in (self.q_proj, self.k_proj, self.v_proj))
        # The number of heads comes from the width, so that a tensor-parallel slice of the projections needs no other change.
        q, k, v = (t.view(t.shape[0], t.shape[1] // self.head_dim, self.head_dim) for t in (q, k, v))
        mixed_NHK = self.core(rotate(q, *rotary), rotate(k, *rotary), v, cu_seqlens, max_length)
        return self.o_proj(mixed_NHK.flatten(1))  # type: ignore[no-any-return]


class StarEncoder2MLP(nn.Module):
    """Two linear layers with tanh-approximated GELU between them."""

    def __init__(self, config: Config):
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x_ND), approximate="tanh"))  # type: ignore[no-any-return]


class StarEncoder2Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: Config):
        super().__init__()
        self.self_attn = StarEncoder2Attention(config)
        self.mlp = StarEncoder2MLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.dropout = config.residual_dropout

    def forward(self, x_ND: Tensor, rotary: tuple[Tensor, Tensor], cu_seqlens: Tensor, max_length: int) -> Tensor:
        attended_ND = self.self_attn(self.input_layernorm(x_ND), rotary, cu_seqlens, max_length)
        x_ND = x_ND + F.dropout(attended_ND, self.dropout, self.training)
        return x_ND + F.dropout(self.mlp(self.post_attention_layernorm(x_ND)), self.dropout, self.training)


class StarEncoder2(nn.Module):
    """The trunk: embeddings and layers over unpadded tokens, giving the state at every exit."""

    # transformers sets both on every module that has the first; pre-training has its own way (pretrain/model).
    gradient_checkpointing = False
    _gradient_checkpointing_func: Any

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(StarEncoder2Layer(config) for _ in range(config.depth))
        normed = config.norm_after_last_layer and config.depth == config.num_hidden_layers
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon) if normed else nn.Identity()
        self.exits = nn.ModuleList(nn.Identity() for _ in config.computed_exit_layers)

    def forward(
        self,
        input_ids_N: Tensor | None,
        positions_N: Tensor,
        cu_seqlens: Tensor,
        max_length: int,
        embeddings_ND: Tensor | None = None,
        exit_layer: int | None = None,
        all_states: list[Tensor] | None = None,
    ) -> list[Tensor]:
        """States [N, D] at each exit, shallow to deep: raw at all but the deepest, which has gone through `norm`.

        `embeddings_ND` stands for `input_ids_N`; no layer above `exit_layer` runs; `all_states` collects the embeddings and the
        state after each layer.
        """
        rotary = rotary_angles(positions_N, self.config.head_dim, self.config.rope_theta)
        embeddings_ND = self.embed_tokens(input_ids_N) if embeddings_ND is None else embeddings_ND
        x_ND = F.dropout(embeddings_ND, self.config.embedding_dropout, self.training)
        states: list[Tensor] = []
        for depth, layer in enumerate(list(self.layers)[:exit_layer], start=1):
            if all_states is not None:
                all_states.append(x_ND)
            run: Any = layer
            if self.gradient_checkpointing and self.training:
                run = partial(self._gradient_checkpointing_func, layer.__call__)
            x_ND = run(x_ND, rotary, cu_seqlens, max_length)
            if depth in self.config.exit_layers:
                state_ND = self.norm(x_ND) if depth == len(self.layers) else x_ND
                states.append(self.exits[len(states)](state_ND))
        if all_states is not None:
            all_states.append(states[-1])
        return states


class StarEncoder2Pooler(nn.Module):
    """tanh(dense(state of `<cls>`)), as in BERT."""

    def __init__(self, config: Config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, cls_states_BD: Tensor) -> Tensor:
        return torch.tanh(self.dense(cls_states_BD))


class StarEncoder2PredictionTransform(nn.Module):
    """Dense, tanh-approximated GELU, LayerNorm, on states widened by the layer index."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x), approximate="tanh"))  # type: ignore[no-any-return]


class StarEncoder2LMPredictionHead(nn.Module):
    """Vocabulary logits; the decoder is not tied to the embedding (its width is D + 4), its bias is stored once."""

    def __init__(self, config: Config):
        super().__init__()
        width = config.hidden_size + config.conditional_size
        self.transform = StarEncoder2PredictionTransform(width, config.norm_epsilon)
        self.decoder = nn.Linear(width, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x)) + self.bias  # type: ignore[no-any-return]

    def resize_bias(self) -> None:
        """Give the bias as many elements as the decoder has rows: the first ones stay, new ones are zero."""
        missing = self.decoder.out_features - len(self.bias)
        self.bias = nn.Parameter(F.pad(self.bias.detach(), (0, missing)), requires_grad=self.bias.requires_grad)


class StarEncoder2PreTrainingHeads(nn.Module):
    """The MLM and ICC heads, shared by all exits; the heads distinguish exits by an embedding of the exit's ordinal (paper 2.2).

    `conditional_size` 0 leaves that embedding out: the heads are then as wide as the states and see no exit.
    """

    def __init__(self, config: Config):
        super().__init__()
        # Without a layer index there is no such parameter: engines and file formats do badly with one of no elements.
        if config.conditional_size:
            self.conditional_embeddings = nn.Embedding(len(config.exit_layers), config.conditional_size)
        self.predictions = StarEncoder2LMPredictionHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size + config.conditional_size, 2)

    def predict_tokens(self, states_MD: Tensor, exit_index: int) -> Tensor:
        """Vocabulary logits [M, V] of states taken at exit number `exit_index` (0 is the shallowest)."""
        return self.predictions(self._with_exit(states_MD, exit_index))  # type: ignore[no-any-return]

    def classify(self, pooled_BD: Tensor, exit_index: int) -> Tensor:
        """In-context (or NSP) logits [B, 2]: class 1 means that the row is of two repositories."""
        return self.seq_relationship(self._with_exit(pooled_BD, exit_index))  # type: ignore[no-any-return]

    def _with_exit(self, states: Tensor, exit_index: int) -> Tensor:
        if not hasattr(self, "conditional_embeddings"):
            return states
        index = torch.full(states.shape[:-1], exit_index, dtype=torch.long, device=states.device)
        return torch.cat((states, self.conditional_embeddings(index)), dim=-1)


@dataclass
class ModularStarEncoderOutput(ModelOutput):
    """States [B, T, D] of the deepest exit that ran and of every exit up to it; in-context logits [B, 2] and, on request,
    token logits; on request the embeddings and the state after each layer, the last one as `last_hidden_state`.
    """

    last_hidden_state: Tensor | None = None
    exit_hidden_states: tuple[Tensor, ...] | None = None
    seq_relationship_logits: tuple[Tensor, ...] | None = None
    prediction_logits: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class RetrievalOutput(ModelOutput):
    """Projected states [B, T, D] of the chosen exit, and normalised embeddings [B, D] of every exit."""

    last_hidden_state: Tensor | None = None
    projected_pooled_normalized: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class TrunkStates:
    """What the trunk gives of padded rows: states [N, D] of each exit, the rows, all layers' states [B, T, D] on request."""

    exits: list[Tensor]
    rows: Rows
    hidden_states: tuple[Tensor, ...] | None = None


class ModularStarEncoderPreTrainedModel(PreTrainedModel):
    """What the models share with transformers: the configuration, weight initialisation, the trunk's name."""

    config_class = ModularStarEncoderConfig
    base_model_prefix = ""
    _no_split_modules = ("StarEncoder2Layer",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Config, exit_layer: int | None = None):
        """`exit_layer` builds and loads the model up to that exit; sentence-transformers passes it in `model_kwargs`."""
        if exit_layer is not None:
            config.exit_layer = exit_layer
        super().__init__(config)
        if config.depth < config.num_hidden_layers:
            deeper = "|".join(str(layer) for layer in range(config.depth, config.num_hidden_layers))
            heads = "|".join(str(index) for index in range(len(config.computed_exit_layers), len(config.exit_layers)))
            # What the file holds for deeper exits is left unread on purpose, and needs no warning.
            self._keys_to_ignore_on_load_unexpected = [
                rf"^starEncoder2\.(norm|layers\.({deeper}))\.",
                rf"^(projection_heads|classifiers)\.({heads})\.",
            ]

    def _init_weights(self, module: nn.Module) -> None:
        # transformers builds the model on the meta device: a tensor that a file lacks and that is not set here would hold
        # whatever its memory held before. So every kind of parameter is covered.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm, StarEncoder2LMPredictionHead)) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.starEncoder2.embed_tokens  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.starEncoder2.embed_tokens = value

    def exit_number(self, exit_layer: int | None) -> int:
        """Ordinal of an exit among those that the model computes; None is the deepest.

        Raises:
            ValueError: the model has no such exit.
        """
        exits = self.config.computed_exit_layers
        if exit_layer is not None and exit_layer not in exits:
            raise ValueError(f"exit_layer: {exit_layer}, expected one of the model's exits {exits}")
        return len(exits) - 1 if exit_layer is None else exits.index(exit_layer)

    def run_trunk(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[list[Tensor], Rows]:
        """Run rows [B, T] and return the states [N, D] of each exit with what `pad` needs."""
        found = self.run_rows(input_ids, attention_mask)
        return found.exits, found.rows

    def run_rows(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None = None,
        exit_layer: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> TrunkStates:
        """Run rows [B, T], padded on either side, of ids or embeddings [B, T, D]; no layer above `exit_layer` runs.

        Raises:
            ValueError: not exactly one of ids and embeddings, a mask of another shape, an exit that the model lacks, or a request
                for attention weights.
        """
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("output_attentions: no attention weights are kept; expected False (see output_hidden_states)")
        given = [values for values in (input_ids, inputs_embeds) if values is not None]
        if len(given) != 1:
            raise ValueError(f"input_ids, inputs_embeds: {len(given)} of the two given, expected exactly one")
        values, exits = given[0], self.config.computed_exit_layers
        shape = values.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones(shape, dtype=torch.bool, device=values.device)
        elif attention_mask.ndim != 2 or attention_mask.shape != shape:
            raise ValueError(f"attention_mask: shape {list(attention_mask.shape)}, expected {list(shape)}")
        rows = DenseRows(attention_mask.bool()) if self._keeps_padding() else unpad(attention_mask)
        packed = rows.pack(values)
        ids_N, embeddings_ND = (packed, None) if inputs_embeds is None else (None, packed)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        collected: list[Tensor] | None = [] if wanted else None
        depth, places = exits[self.exit_number(exit_layer)], (rows.positions_N, rows.cu_seqlens, rows.max_length)
        states = self.starEncoder2(ids_N, *places, embeddings_ND, depth, collected)
        return TrunkStates(states, rows, None if collected is None else tuple(rows.pad(state) for state in collected))

    def _keeps_padding(self) -> bool:
        # The number of real tokens is a shape that depends on data: an exported graph cannot hold it, and attention functions
        # other than ours and FlashAttention's take a mask instead of bounds.
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return True
        implementation = self.config._attn_implementation
        return implementation not in OWN_ATTENTION and "flash" not in implementation


class PredictsTokens:
    """What transformers asks a model with the MLM head, as `self.cls`, for."""

    cls: StarEncoder2PreTrainingHeads

    def get_output_embeddings(self) -> nn.Module:
        """The MLM decoder, which is not tied to the token embedding."""
        return self.cls.predictions.decoder  # type: ignore[no-any-return]

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the MLM decoder; its bias, which is the head's own, gets zeros for new rows."""
        self.cls.predictions.decoder = value
        self.cls.predictions.resize_bias()


class ModularStarEncoder(PredictsTokens, ModularStarEncoderPreTrainedModel):
    """The pre-trained model: trunk, pooler, MLM and ICC heads."""

    def __init__(self, config: Config, exit_layer: int | None = None):
        super().__init__(config, exit_layer)
        self.starEncoder2 = StarEncoder2(config)
        self.pooler = StarEncoder2Pooler(config)
        self.cls = StarEncoder2PreTrainingHeads(config)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_prediction_logits: bool = False,
        inputs_embeds: Tensor | None = None,
        exit_layer: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ModularStarEncoderOutput:
        """Run rows [B, T], padded on either side; `output_prediction_logits` adds [B, T, V] logits of every exit.

        `exit_layer` ends the model there. Raises ValueError as `run_rows`.
        """
        found = self.run_rows(input_ids, attention_mask, inputs_embeds, exit_layer, output_hidden_states, output_attentions)
        pooled = [self.pooler(found.rows.last(state_ND)) for state_ND in found.exits]
        padded = tuple(found.rows.pad(state_ND) for state_ND in found.exits)
        logits = None
        if output_prediction_logits:
            logits = tuple(self.cls.predict_tokens(state, index) for index, state in enumerate(padded))
        return ModularStarEncoderOutput(
            last_hidden_state=padded[-1],
            exit_hidden_states=padded,
            seq_relationship_logits=tuple(self.cls.classify(pooled_BD, index) for index, pooled_BD in enumerate(pooled)),
            prediction_logits=logits,
            hidden_states=found.hidden_states,
        )


class ModularStarEncoderForRetrieval(ModularStarEncoderPreTrainedModel):
    """The fine-tuned model: trunk and one projection head per exit (two D x D linears, as the released sizes imply)."""

    def __init__(self, config: Config, exit_layer: int | None = None):
        super().__init__(config, exit_layer)
        width = config.hidden_size
        self.starEncoder2 = StarEncoder2(config)
        self.projection_heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width)) for _ in config.computed_exit_layers
        )
        self.post_init()

    def embed(self, input_ids_N: Tensor, positions_N: Tensor, cu_seqlens: Tensor, max_length: int) -> list[Tensor]:
        """L2-normalised embeddings [B, D] of unpadded rows at each exit: project, take `<cls>` (the last token), normalise."""
        states = self.starEncoder2(input_ids_N, positions_N, cu_seqlens, max_length)
        last_B = cu_seqlens[1:].long() - 1
        return [F.normalize(head(state[last_B]), dim=-1) for head, state in zip(self.projection_heads, states, strict=True)]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        exit_layer: int | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> RetrievalOutput:
        """Run rows [B, T], padded on either side; `last_hidden_state` is that of `exit_layer` (default: the deepest exit).

        Raises ValueError as `run_rows`.
        """
        chosen = self.exit_number(exit_layer)
        found = self.run_rows(input_ids, attention_mask, inputs_embeds, None, output_hidden_states, output_attentions)
        projected = [head(state) for head, state in zip(self.projection_heads, found.exits, strict=True)]
        # Zeros of a row without tokens are zeros here too, although the heads have biases.
        embedded = tuple(F.normalize(found.rows.last(state), dim=-1) for state in projected)
        hidden_states = found.hidden_states
        return RetrievalOutput(found.rows.pad(projected[chosen]), embedded, hidden_states)
