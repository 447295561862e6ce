"""The multi-exit encoder as one plain PyTorch model, which is also the Hugging Face model of a converted checkpoint.

Parallelism is applied from outside, at four points: the number of heads follows from the width of the projections, every
exit's state passes through an `nn.Identity`, `cls.predictions.bias` is a bare parameter named in the sharding table, and what
attention does between its projections is a module of its own, without parameters.

Letters: B rows, T slots, N real tokens of all rows, D width, H heads, K head width, V vocabulary, E exits, M chosen tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from .attention_mose import attention, rotary_angles, rotate
from .configuration_mose import ModularStarEncoderConfig

Config = ModularStarEncoderConfig


class StarEncoder2AttentionCore(nn.Module):
    """Attention of rotated queries and keys: the place where training seeds dropout, recomputes, or leaves compiled code."""

    def __init__(self, config: Config):
        super().__init__()
        self.dropout = config.attention_dropout

    def forward(self, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, max_length: int) -> Tensor:
        return attention(q_NHK, k_NGK, v_NGK, cu_seqlens, max_length, self.dropout if self.training else 0.0)


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
        q, k, v = (t.view(t.shape[0], -1, self.head_dim) for t in (q, k, v))
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

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(StarEncoder2Layer(config) for _ in range(config.depth))
        normed = config.norm_after_last_layer and config.depth == config.num_hidden_layers
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon) if normed else nn.Identity()
        self.exits = nn.ModuleList(nn.Identity() for _ in config.computed_exit_layers)

    def forward(self, input_ids_N: Tensor, positions_N: Tensor, cu_seqlens: Tensor, max_length: int) -> list[Tensor]:
        """States [N, D] at each exit, shallow to deep: raw at all but the deepest, which has gone through `norm`."""
        rotary = rotary_angles(positions_N, self.config.head_dim, self.config.rope_theta)
        x_ND = F.dropout(self.embed_tokens(input_ids_N), self.config.embedding_dropout, self.training)
        states: list[Tensor] = []
        for depth, layer in enumerate(self.layers, start=1):
            x_ND = layer(x_ND, rotary, cu_seqlens, max_length)
            if depth in self.config.exit_layers:
                state_ND = self.norm(x_ND) if depth == len(self.layers) else x_ND
                states.append(self.exits[len(states)](state_ND))
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
    """States [B, T, D] of the deepest exit and of every exit; in-context logits [B, 2] and, on request, token logits."""

    last_hidden_state: Tensor | None = None
    exit_hidden_states: tuple[Tensor, ...] | None = None
    seq_relationship_logits: tuple[Tensor, ...] | None = None
    prediction_logits: tuple[Tensor, ...] | None = None


@dataclass
class RetrievalOutput(ModelOutput):
    """Projected states [B, T, D] of the chosen exit, and normalised embeddings [B, D] of every exit."""

    last_hidden_state: Tensor | None = None
    projected_pooled_normalized: tuple[Tensor, ...] | None = None


@dataclass
class UnpaddedRows:
    """Rows without their padding: where each real token lies in [B * T], and the rows' bounds."""

    indices_N: Tensor
    positions_N: Tensor
    cu_seqlens: Tensor
    max_length: int
    shape: tuple[int, int]

    @property
    def last_B(self) -> Tensor:
        """Index into N of each row's last real token, which is `<cls>`."""
        return self.cu_seqlens[1:].long() - 1

    def pad(self, states_ND: Tensor) -> Tensor:
        """Put states back into [B, T, D]; padding slots are zero."""
        padded = states_ND.new_zeros(self.shape[0] * self.shape[1], states_ND.shape[-1])
        return padded.index_copy(0, self.indices_N, states_ND).view(*self.shape, -1)


def unpad(attention_mask_BT: Tensor) -> UnpaddedRows:
    """Find the real tokens of left- or right-padded rows; positions count real tokens from 0."""
    mask_BT = attention_mask_BT.bool()
    lengths_B = mask_BT.sum(dim=1)
    positions_BT = mask_BT.long().cumsum(dim=1) - 1
    cu_seqlens = F.pad(lengths_B.cumsum(0), (1, 0)).to(torch.int32)
    indices_N = mask_BT.flatten().nonzero().squeeze(1)
    shape = (mask_BT.shape[0], mask_BT.shape[1])
    return UnpaddedRows(indices_N, positions_BT[mask_BT], cu_seqlens, int(lengths_B.max()), shape)


class ModularStarEncoderPreTrainedModel(PreTrainedModel):
    """What the models share with transformers: the configuration, weight initialisation, the trunk's name."""

    config_class = ModularStarEncoderConfig
    base_model_prefix = ""
    _no_split_modules = ("StarEncoder2Layer",)

    def __init__(self, config: Config, exit_layer: int | None = None):
        """`exit_layer` builds and loads the model up to that exit; sentence-transformers passes it in `model_kwargs`."""
        if exit_layer is not None:
            config.exit_layer = exit_layer
        super().__init__(config)
        if config.depth < config.num_hidden_layers:
            deeper = "|".join(str(layer) for layer in range(config.depth, config.num_hidden_layers))
            heads = "|".join(str(index) for index in range(len(config.computed_exit_layers), len(config.exit_layers)))
            # What the file holds for deeper exits is left unread on purpose, and needs no warning.
            self._keys_to_ignore_on_load_unexpected = {
                rf"^starEncoder2\.(norm|layers\.({deeper}))\.",
                rf"^(projection_heads|classifiers)\.({heads})\.",
            }

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

    def run_trunk(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[list[Tensor], UnpaddedRows]:
        """Unpad rows [B, T], run the trunk, and return the states [N, D] of each exit with what `pad` needs."""
        rows = unpad(torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        ids_N = input_ids.flatten()[rows.indices_N]
        return self.starEncoder2(ids_N, rows.positions_N, rows.cu_seqlens, rows.max_length), rows


class ModularStarEncoder(ModularStarEncoderPreTrainedModel):
    """The pre-trained model: trunk, pooler, MLM and ICC heads."""

    def __init__(self, config: Config, exit_layer: int | None = None):
        super().__init__(config, exit_layer)
        self.starEncoder2 = StarEncoder2(config)
        self.pooler = StarEncoder2Pooler(config)
        self.cls = StarEncoder2PreTrainingHeads(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_prediction_logits: bool = False,
        **_: Any,
    ) -> ModularStarEncoderOutput:
        """Run rows [B, T], padded on either side; `output_prediction_logits` adds [B, T, V] logits of every exit."""
        states, rows = self.run_trunk(input_ids, attention_mask)
        pooled = [self.pooler(state_ND[rows.last_B]) for state_ND in states]
        padded = tuple(rows.pad(state_ND) for state_ND in states)
        logits = None
        if output_prediction_logits:
            logits = tuple(self.cls.predict_tokens(state, index) for index, state in enumerate(padded))
        return ModularStarEncoderOutput(
            last_hidden_state=padded[-1],
            exit_hidden_states=padded,
            seq_relationship_logits=tuple(self.cls.classify(pooled_BD, index) for index, pooled_BD in enumerate(pooled)),
            prediction_logits=logits,
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

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, exit_layer: int | None = None, **_: Any
    ) -> RetrievalOutput:
        """Run rows [B, T], padded on either side; `last_hidden_state` is that of `exit_layer` (default: the deepest exit)."""
        states, rows = self.run_trunk(input_ids, attention_mask)
        projected = [head(state) for head, state in zip(self.projection_heads, states, strict=True)]
        chosen = self.config.computed_exit_layers.index(exit_layer) if exit_layer is not None else -1
        return RetrievalOutput(
            last_hidden_state=rows.pad(projected[chosen]),
            projected_pooled_normalized=tuple(F.normalize(state[rows.last_B], dim=-1) for state in projected),
        )


class StarEncoder2ClassificationHead(nn.Module):
    """Logits [B, C] of the state of `<cls>`: the dense layer and tanh of the pooler, then one linear layer, as in RoBERTa."""

    def __init__(self, config: Config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)
        self.dropout = config.residual_dropout

    def forward(self, cls_states_BD: Tensor) -> Tensor:
        pooled_BD = F.dropout(torch.tanh(self.dense(cls_states_BD)), self.dropout, self.training)
        return self.out_proj(pooled_BD)  # type: ignore[no-any-return]


@dataclass
class MultiExitClassifierOutput(SequenceClassifierOutput):
    """transformers' output, with the logits [B, C] of every exit beside those of the chosen one."""

    exit_logits: tuple[Tensor, ...] | None = None


class ModularStarEncoderForSequenceClassification(ModularStarEncoderPreTrainedModel):
    """The fine-tuned classifier: trunk and one head per exit; the number of classes C is `config.num_labels`."""

    def __init__(self, config: Config, exit_layer: int | None = None):
        super().__init__(config, exit_layer)
        self.starEncoder2 = StarEncoder2(config)
        self.classifiers = nn.ModuleList(StarEncoder2ClassificationHead(config) for _ in config.computed_exit_layers)
        self.post_init()

    def classify(self, input_ids_N: Tensor, positions_N: Tensor, cu_seqlens: Tensor, max_length: int) -> list[Tensor]:
        """Logits [B, C] of unpadded rows at each exit, from the state of `<cls>`, the last token of a row."""
        states = self.starEncoder2(input_ids_N, positions_N, cu_seqlens, max_length)
        last_B = cu_seqlens[1:].long() - 1
        return [head(state_ND[last_B]) for head, state_ND in zip(self.classifiers, states, strict=True)]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        exit_layer: int | None = None,
        **_: Any,
    ) -> MultiExitClassifierOutput:
        """Run rows [B, T], padded on either side; `logits` and the loss of `labels` [B] are those of `exit_layer` (default: the
        deepest exit).
        """
        states, rows = self.run_trunk(input_ids, attention_mask)
        logits = tuple(head(state_ND[rows.last_B]) for head, state_ND in zip(self.classifiers, states, strict=True))
        chosen = logits[self.config.computed_exit_layers.index(exit_layer) if exit_layer is not None else -1]
        loss = F.cross_entropy(chosen.float(), labels) if labels is not None else None
        return MultiExitClassifierOutput(loss=loss, logits=chosen, exit_logits=logits)
