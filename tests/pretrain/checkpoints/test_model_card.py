"""Covers the model card: the run's facts, the last losses up to the checkpoint, parameters of each exit, valid front matter."""

import dataclasses

import yaml

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoderForRetrieval
from pretrain.checkpoints.model_card import RunFacts, last_metrics, model_card

CONFIG = ModularStarEncoderConfig(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    matryoshka_layers=[1, 4],
)
METRICS = {"loss/exit_01/mlm": 3.25, "loss/exit_04/mlm": 2.5, "accuracy/exit_04/icc": 0.75}
FACTS = RunFacts("first-run", 1200, 9600, 1234567, "code", "0123456789abcdef", "bf16", METRICS)


def test_the_last_value_of_each_scalar_up_to_the_step() -> None:
    lines = [{"step": 1, "a": 1, "b": 1}, {"step": 2, "a": 2}, {"step": 3, "a": 3}]
    assert last_metrics(lines, 2) == {"step": 2, "a": 2, "b": 1}
    assert last_metrics([], 2) == {}


def test_facts_are_in_the_card() -> None:
    card = model_card(CONFIG, FACTS)
    for text in ("first-run", "1,200", "1,234,567", "0123456789abcdef", "bf16", "exit_layer=1", '{"exit_layer": 1}'):
        assert text in card
    assert "parity.json" in card


def test_every_exit_has_its_row() -> None:
    rows = {line.split("|")[1].strip(): line for line in model_card(CONFIG, FACTS).splitlines() if line.startswith("| ")}
    for layer, mlm in ((1, "3.2500"), (4, "2.5000")):
        cut = ModularStarEncoderConfig(**{**CONFIG.to_dict(), "num_hidden_layers": layer, "matryoshka_layers": [layer]})
        cut.norm_after_last_layer = layer == 4
        parameters = sum(value.numel() for value in ModularStarEncoderForRetrieval(cut).starEncoder2.parameters())
        assert f"| {parameters:,} |" in rows[str(layer)]
        assert f"| {mlm} |" in rows[str(layer)]
    assert "0.7500" in rows["4"]


def test_the_licence_is_left_to_the_user() -> None:
    _, front, _ = model_card(CONFIG, FACTS).split("---\n", 2)
    values = yaml.safe_load(front)
    assert "license" not in values
    assert "# license:" in front
    assert values["tags"] == ["code", "sentence-transformers", "multi-exit"]


def test_a_model_of_one_exit_needs_no_keyword() -> None:
    cut = ModularStarEncoderConfig(**{**CONFIG.to_dict(), "num_hidden_layers": 1, "matryoshka_layers": [1]})
    assert "exit_layer" not in model_card(cut, FACTS)


def test_a_name_is_neither_html_nor_a_cell_of_its_own() -> None:
    hostile = dataclasses.replace(
        FACTS, name="<img src=x onerror=alert(1)>", dataset="a|b\n# c\x1b[2J\u202e s3://k:secret@bucket"
    )
    card = model_card(CONFIG, hostile)
    assert "<img" not in card
    assert "\n# c" not in card
    assert r"a\|b # c\x1b[2J\u202e s3://***@bucket" in card
