"""The encoder under the names by which transformers knows its tasks: fill-mask, continued pre-training, classification.

`AutoModelForMaskedLM` and `AutoModelForPreTraining` open the folder of `ModularStarEncoder`; a classifier has folders of its own.

Letters: B rows, T slots, V vocabulary, D width, N tokens that the trunk sees, C classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import FillMaskPipeline
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

# transformers 4 copies the files that the opened file imports itself, and not what those import in turn.
from .attention_mose import attention  # noqa: F401
from .configuration_mose import ModularStarEncoderConfig as Config
from .modeling_mose import (
    ModularStarEncoder,
    ModularStarEncoderPreTrainedModel,
    PredictsTokens,
    StarEncoder2,
    StarEncoder2PreTrainingHeads,
    TrunkStates,
)
from .rows_mose import Rows

IGNORED = -100
"""Label of a token, or of a row, that no loss counts."""


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over labels [M] that are not ignored, of logits [M, C]; 0, not NaN, where there are none."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp_min(1)


class ModularStarEncoderForMaskedLM(PredictsTokens, ModularStarEncoderPreTrainedModel):
    """Trunk and MLM head: token logits and loss of one exit, as fill-mask and masked-language-model training want them."""

    def __init__(self, config: Config, exit_layer: int | None = None):
        super().__init__(config, exit_layer)
        # The folder's other heads are left unread on purpose, as are layers above `exit_layer`.
        deeper = self._keys_to_ignore_on_load_unexpected or ()
        self._keys_to_ignore_on_load_unexpected = [r"^pooler\.", r"^cls\.seq_relationship\.", *deeper]
        self.starEncoder2 = StarEncoder2(config)
        self.cls = StarEncoder2PreTrainingHeads(config)
        # Without the second task's head, no parameter is left without a gradient (distributed training refuses those).
        del self.cls.seq_relationship
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        exit_layer: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MaskedLMOutput:
        """Logits [B, T, V] of `exit_layer` (default: the deepest), and the mean loss of `labels` [B, T] that are not -100.

        Raises ValueError as `run_rows`.
        """
        found = self.run_rows(input_ids, attention_mask, inputs_embeds, exit_layer, output_hidden_states, output_attentions)
        logits = self.cls.predict_tokens(found.rows.pad(found.exits[-1]), len(found.exits) - 1)
        loss = None if labels is None else mean_cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=found.hidden_states)


class ModularStarEncoderFillMask(FillMaskPipeline):
    """`pipeline("fill-mask", FOLDER)`, in which `<mask>` is the special token and not the text that the tokenizer takes it for.

    In its inputs the other special tokens are special, too: the tokenizer has one option for all of them.
    """

    def preprocess(self, inputs: Any, return_tensors: Any = None, tokenizer_kwargs: Any = None, **options: Any) -> Any:
        """Token ids [1, T] of one text; `tokenizer_kwargs` override the option."""
        given = {"split_special_tokens": False, **(tokenizer_kwargs or {})}
        return super().preprocess(inputs, return_tensors=return_tensors, tokenizer_kwargs=given, **options)


@dataclass
class PreTrainingOutput(ModelOutput):
    """The loss of every exit, weighted by depth; token logits [B, T, V] and in-context logits [B, 2] of the chosen exit."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class ModularStarEncoderForPreTraining(ModularStarEncoder):
    """The whole pre-trained model with the loss of pre-training: the sum over exits of (i/L)(MLM + ICC), layer i of L."""

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        exit_layer: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> PreTrainingOutput:
        """`labels` [B, T] are tokens, `next_sentence_label` [B] 1 for a row of two repositories; -100 is ignored in both.

        With `exit_layer`, the exits above it take no part in the loss. Raises ValueError as `run_rows`.
        """
        found = self.run_rows(input_ids, attention_mask, inputs_embeds, exit_layer, output_hidden_states, output_attentions)
        last = len(found.exits) - 1
        return PreTrainingOutput(
            loss=self._loss(found, labels, next_sentence_label),
            prediction_logits=self.cls.predict_tokens(found.rows.pad(found.exits[last]), last),
            seq_relationship_logits=self._classify(found.rows, found.exits[last], last),
            hidden_states=found.hidden_states,
        )

    def _classify(self, rows: Rows, state_ND: Tensor, index: int) -> Tensor:
        return self.cls.classify(self.pooler(rows.last(state_ND)), index)  # type: ignore[no-any-return]

    def _loss(self, found: TrunkStates, labels: Tensor | None, next_sentence_label: Tensor | None) -> Tensor | None:
        terms = []
        for index, (layer, state_ND) in enumerate(zip(self.config.exit_layers, found.exits, strict=False)):
            weight = layer / self.config.num_hidden_layers
            if labels is not None:
                labels_N = found.rows.pack(labels)
                chosen_N = labels_N != IGNORED
                # Masked positions first: full logits of every exit would be the largest tensors by far.
                logits_MV = self.cls.predict_tokens(state_ND[chosen_N], index)
                terms.append(weight * mean_cross_entropy(logits_MV, labels_N[chosen_N]))
            if next_sentence_label is not None:
                logits_B2 = self._classify(found.rows, state_ND, index)
                terms.append(weight * mean_cross_entropy(logits_B2, next_sentence_label))
        return sum(terms) if terms else None  # type: ignore[return-value]


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

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        exit_layer: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MultiExitClassifierOutput:
        """Run rows [B, T], padded on either side; `logits` and the loss of `labels` [B] are those of `exit_layer` (default: the
        deepest), and `exit_logits` those of every exit up to it. Raises ValueError as `run_rows`.
        """
        found = self.run_rows(input_ids, attention_mask, inputs_embeds, exit_layer, output_hidden_states, output_attentions)
        # `exit_layer` leaves the heads above it without a state.
        pairs = zip(self.classifiers, found.exits, strict=False)
        logits = tuple(head(found.rows.last(state_ND)) for head, state_ND in pairs)
        loss = None if labels is None else mean_cross_entropy(logits[-1], labels)
        return MultiExitClassifierOutput(loss=loss, logits=logits[-1], hidden_states=found.hidden_states, exit_logits=logits)
