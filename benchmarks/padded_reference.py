"""The same model, loss and data as a user of transformers would write them: padded rows, and full vocabulary logits if asked.

Letters: B rows, T slots, N real tokens, D width, M masked tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Starcoder2Config, Starcoder2Model

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.exits import exit_weights
from mose.model.modeling_mose import ModularStarEncoder
from pretrain.data.micro_batch import IGNORED_LABEL, MicroBatch


class PaddedReference(nn.Module):
    """transformers' Starcoder2 made bidirectional, under the pooler and heads of `encoder`, whose weights it takes."""

    def __init__(self, encoder: ModularStarEncoder, *, full_logits: bool):
        """`full_logits` projects every slot to the vocabulary, as Hugging Face's models for masked language modelling do."""
        super().__init__()
        shape: ModularStarEncoderConfig = encoder.config
        self.trunk = Starcoder2Model._from_config(_reference_config(shape), attn_implementation="sdpa")
        self.trunk.load_state_dict(encoder.starEncoder2.state_dict(), strict=True)
        self.pooler, self.cls = encoder.pooler, encoder.cls
        self._exits, self._weights = shape.exit_layers, exit_weights(shape.exit_layers, shape.num_hidden_layers)
        self._full_logits = full_logits

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, mixed: Tensor) -> dict[str, Tensor]:
        """The multi-exit loss of rows [B, T] padded on the left."""
        positions_BT = (attention_mask.cumsum(1) - 1).clamp(min=0)
        states = self.trunk(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions_BT, output_hidden_states=True
        ).hidden_states
        loss = states[0].new_zeros(())
        for index, (layer, weight) in enumerate(zip(self._exits, self._weights, strict=True)):
            state_BTD = states[layer]
            icc = F.cross_entropy(self.cls.classify(self.pooler(state_BTD[:, -1]), index), mixed)
            loss = loss + weight * (self._token_loss(state_BTD, labels, index) + icc)
        return {"loss": loss}

    def _token_loss(self, state_BTD: Tensor, labels_BT: Tensor, index: int) -> Tensor:
        if self._full_logits:
            logits_BTV = self.cls.predict_tokens(state_BTD, index)
            return F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED_LABEL)
        chosen_BT = labels_BT != IGNORED_LABEL
        return F.cross_entropy(self.cls.predict_tokens(state_BTD[chosen_BT], index), labels_BT[chosen_BT])


def _reference_config(shape: ModularStarEncoderConfig) -> Starcoder2Config:
    return Starcoder2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        is_causal=False,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attention_dropout=0.0,
        residual_dropout=0.0,
        embedding_dropout=0.0,
    )


def padded_inputs(batch: MicroBatch, slots: int) -> dict[str, Tensor]:
    """The rows of a micro-batch as [B, T] tensors padded on the left, under the names that `PaddedReference` takes."""
    lengths_B = torch.diff(batch.cu_seqlens.long())
    real_BT = torch.arange(slots) >= slots - lengths_B[:, None]
    labels_N = torch.full_like(batch.input_ids_N, IGNORED_LABEL)
    labels_N[batch.masked_N_indices] = batch.labels_M
    ids_BT, labels_BT = torch.zeros_like(real_BT, dtype=torch.long), torch.full(real_BT.shape, IGNORED_LABEL)
    ids_BT[real_BT], labels_BT[real_BT] = batch.input_ids_N, labels_N
    return {"input_ids": ids_BT, "attention_mask": real_BT.long(), "labels": labels_BT, "mixed": batch.mixed_B}
