"""Covers what transformers users do with the classes: options of a call, losses, refusals, rows without tokens, export."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder, ModularStarEncoderForRetrieval
from mose.model.tasks_mose import (
    ModularStarEncoderForMaskedLM,
    ModularStarEncoderForPreTraining,
    ModularStarEncoderForSequenceClassification,
)

EXITS = [1, 2, 4]
SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "matryoshka_layers": EXITS,
    "initializer_range": 0.2,
}
CLASSES = [
    ModularStarEncoder,
    ModularStarEncoderForMaskedLM,
    ModularStarEncoderForPreTraining,
    ModularStarEncoderForRetrieval,
    ModularStarEncoderForSequenceClassification,
]
ALL = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def made(kind: Any, **changes: Any) -> Any:
    torch.manual_seed(3)
    return kind(ModularStarEncoderConfig(**{**SHAPE, **changes})).eval()


def rows() -> dict[str, Tensor]:
    """Three rows of 9, 4 and 7 tokens: the first full, the second padded on the left, the third on the right."""
    generator = torch.Generator().manual_seed(5)
    ids_BT, mask_BT = torch.randint(5, 61, (3, 9), generator=generator), torch.ones(3, 9, dtype=torch.long)
    mask_BT[1, :5] = 0
    mask_BT[2, 7:] = 0
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def main_output(output: Any) -> Tensor:
    """Token states or logits [B, T, ...] of a model's output, or a classifier's logits [B, C]."""
    names = ("last_hidden_state", "logits", "prediction_logits")
    return next(output[name] for name in names if name in output)  # type: ignore[no-any-return]


@ALL
@torch.no_grad()
def test_an_exit_chosen_in_the_call_equals_the_model_built_up_to_it(kind: Any) -> None:
    whole, inputs = made(kind), rows()
    cut = kind(ModularStarEncoderConfig(**SHAPE), exit_layer=2).eval()
    cut.load_state_dict({name: value for name, value in whole.state_dict().items() if name in cut.state_dict()})
    assert torch.equal(main_output(whole(**inputs, exit_layer=2)), main_output(cut(**inputs)))
    with pytest.raises(ValueError, match=r"exit_layer: 3, expected one of the model's exits \[1, 2, 4\]"):
        whole(**inputs, exit_layer=3)


@ALL
@torch.no_grad()
def test_options_of_a_call(kind: Any) -> None:
    model, inputs = made(kind), rows()
    expected = model(**inputs)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    from_embeds = model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
    assert torch.equal(main_output(from_embeds), main_output(expected))
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(expected.to_tuple())
    states = model(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == 1 + SHAPE["num_hidden_layers"]
    assert torch.equal(states[0][0], embeds[0])


@ALL
def test_refusals_name_the_field(kind: Any) -> None:
    model, inputs = made(kind), rows()
    with pytest.raises(TypeError, match="unexpected keyword argument 'token_typ_ids'"):
        model(**inputs, token_typ_ids=None)
    with pytest.raises(ValueError, match="output_attentions: no attention weights are kept; expected False"):
        model(**inputs, output_attentions=True)
    with pytest.raises(ValueError, match="input_ids, inputs_embeds: 0 of the two given, expected exactly one"):
        model(attention_mask=inputs["attention_mask"])
    with pytest.raises(ValueError, match=r"attention_mask: shape \[3, 8\], expected \[3, 9\]"):
        model(inputs["input_ids"], inputs["attention_mask"][:, 1:])


@ALL
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_rows_without_tokens_are_zeros_and_change_no_other(kind: Any, implementation: str) -> None:
    model, inputs = made(kind), rows()
    model.set_attn_implementation(implementation)
    expected = main_output(model(**inputs))
    inputs["attention_mask"][1] = 0
    found = model(**inputs)
    assert all(torch.isfinite(value).all() for value in found.values() if isinstance(value, Tensor))
    assert (main_output(found)[[0, 2]] - expected[[0, 2]]).abs().max() <= 1e-5
    for embedding in found.get("projected_pooled_normalized") or ():
        assert torch.isfinite(embedding).all()
    if "last_hidden_state" in found:
        assert (found.last_hidden_state[1] == 0).all()
    inputs["attention_mask"][:] = 0
    assert torch.isfinite(main_output(model(**inputs))).all()
    empty = {name: value[:0] for name, value in inputs.items()}
    assert main_output(model(**empty)).shape == expected[:0].shape


@torch.no_grad()
def test_eager_and_registered_attention_equal_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = made(ModularStarEncoder), rows()
    expected = model(**inputs).exit_hidden_states
    model.set_attn_implementation("eager")
    for a, b in zip(expected, model(**inputs).exit_hidden_states, strict=True):
        assert (a - b).abs().max() <= 1e-5
    bounds = []

    def flash(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **options: Any) -> tuple[Tensor, None]:
        bounds.append((options["cu_seq_lens_q"].tolist(), options["max_length_q"], options["is_causal"]))
        return query.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    model.config._attn_implementation = "flash_attention_2"
    model(**inputs)
    assert bounds == [([0, 9, 13, 20], 9, False)] * 4


@torch.no_grad()
def test_labels_give_the_losses_that_the_logits_have() -> None:
    model, inputs = made(ModularStarEncoderForMaskedLM), rows()
    labels = inputs["input_ids"].clone()
    labels[:, ::2] = -100
    found = model(**inputs, labels=labels, exit_layer=2)
    chosen = labels != -100
    assert found.loss == pytest.approx(nn.functional.cross_entropy(found.logits[chosen], labels[chosen]).item(), rel=1e-5)
    assert model(**inputs, labels=torch.full_like(labels, -100)).loss == 0
    whole = made(ModularStarEncoderForPreTraining)
    labels[inputs["attention_mask"] == 0] = -100
    mixed, total = torch.tensor([0, 1, 1]), 0.0
    for layer in EXITS:
        at = whole(**inputs, exit_layer=layer)
        kept = labels != -100
        tokens = nn.functional.cross_entropy(at.prediction_logits[kept], labels[kept])
        total += layer / 4 * (tokens + nn.functional.cross_entropy(at.seq_relationship_logits, mixed)).item()
    assert whole(**inputs, labels=labels, next_sentence_label=mixed).loss == pytest.approx(total, rel=1e-5)
    classifier, classes = made(ModularStarEncoderForSequenceClassification, num_labels=3), torch.tensor([2, 0, 1])
    found = classifier(**inputs, labels=classes, exit_layer=2)
    assert found.loss == pytest.approx(nn.functional.cross_entropy(found.logits, classes).item(), rel=1e-5)
    assert torch.equal(found.logits, found.exit_logits[1])


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradient() -> None:
    changes = dict.fromkeys(("attention_dropout", "residual_dropout", "embedding_dropout"), 0.0)
    model, inputs = made(ModularStarEncoderForMaskedLM, **changes).train(), rows()
    gradients, calls = [], []
    # Recomputation stops at the last tensor that is needed, inside the feed-forward part, so attention is counted.
    model.starEncoder2.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            model._set_gradient_checkpointing(True, torch.utils.checkpoint.checkpoint)
        model.zero_grad()
        model.starEncoder2._gradient_checkpointing_func = lambda run, *given: torch.utils.checkpoint.checkpoint(
            run, *given, use_reentrant=False
        )
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert len(calls) == 3
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", CLASSES[:3], ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_resizing_keeps_old_rows_and_gives_the_bias_zeros(kind: Any) -> None:
    model = made(kind)
    model.cls.predictions.bias.normal_()
    before = model.cls.predictions.bias.clone()
    for size in (70, 61):
        model.resize_token_embeddings(size, mean_resizing=False)
        assert model.config.vocab_size == len(model.cls.predictions.bias) == model.get_output_embeddings().out_features == size
        assert torch.equal(model.cls.predictions.bias[:61], before)
        assert (model.cls.predictions.bias[61:] == 0).all()
        assert {name: p.shape for name, p in model.named_parameters()} == {
            name: p.shape for name, p in kind(model.config).named_parameters()
        }


class Positional(nn.Module):
    """A model that takes and returns tensors alone, as exporters want it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return main_output(self.model(input_ids=input_ids, attention_mask=attention_mask))


@pytest.mark.parametrize("exit_layer", [1, 4])
@torch.no_grad()
def test_torch_export_of_an_exit_with_any_rows_and_length(exit_layer: int) -> None:
    torch.manual_seed(3)
    model = Positional(ModularStarEncoder(ModularStarEncoderConfig(**SHAPE), exit_layer=exit_layer).eval())
    inputs = rows()
    shapes = {0: torch.export.Dim("rows", max=64), 1: torch.export.Dim("slots", max=2048)}
    exported = torch.export.export(model, tuple(inputs.values()), dynamic_shapes=(shapes, shapes)).module()
    for batch, slots in ((3, 9), (2, 5)):
        given = [value[:batch, :slots] for value in inputs.values()]
        assert (exported(*given) - model(*given)).abs().max() <= 1e-5
