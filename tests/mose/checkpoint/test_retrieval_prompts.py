"""The prompts of an exported folder: one per language of the released card and of the training pairs."""

import json
from pathlib import Path

import pytest

from mose.checkpoint.converted_checkpoint import describe, read_model_config
from mose.checkpoint.exit_selection import select_exit
from mose.checkpoint.retrieval_prompts import LANGUAGES, named_prompts
from mose.checkpoint.sentence_folder import CONFIG_NAME
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder, ModularStarEncoderForRetrieval


def test_every_trained_language_has_a_prompt_and_none_replaces_another_kind() -> None:
    prompts = named_prompts(["c#", "kotlin", "python", "query", "<sep>"])
    assert set(prompts) == {*LANGUAGES, "c#", "kotlin", "query", "document"}
    assert prompts["c#"] == "Represent this c# code snippet for retrieval:"
    assert prompts["query"].startswith("Represent this code description")


def test_a_folder_and_an_exit_cut_from_it_carry_the_trained_languages(tmp_path: Path) -> None:
    shape = {"vocab_size": 40, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ModularStarEncoderConfig(**shape, num_key_value_heads=1, matryoshka_layers=[1, 2], languages=["kotlin"])
    cut = select_exit(ModularStarEncoderForRetrieval, config, 1).config
    for name, described in (("whole", config), ("cut", cut)):
        describe(tmp_path / name, ModularStarEncoderForRetrieval, described)
        prompts = json.loads((tmp_path / name / CONFIG_NAME).read_text())["prompts"]
        assert prompts["kotlin"] == "Represent this kotlin code snippet for retrieval:<sep>"
        assert read_model_config(tmp_path / name).languages == ["kotlin"]
    describe(tmp_path / "pretrained", ModularStarEncoder, config)
    assert json.loads((tmp_path / "pretrained" / CONFIG_NAME).read_text())["prompts"] == {}


def test_languages_of_another_type_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ModularStarEncoder", "languages": "python"}))
    with pytest.raises(MoseError, match=r"config\.json: languages: "):
        read_model_config(tmp_path)
