"""Covers tools of others on exported folders: ONNX, peft, int8, transformers' Trainer, sentence-transformers, mteb."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mose.checkpoint.converted_checkpoint import (
    classification_from_pretrained,
    random_like,
    retrieval_from_pretrained,
    write_checkpoint,
)
from mose.model.configuration_mose import ModularStarEncoderConfig
from tests.commands import environment
from tests.datasets import make_tokenizer

CONFIG = ModularStarEncoderConfig(
    vocab_size=420,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    matryoshka_layers=[1, 2],
    initializer_range=0.2,
)
SCRIPT = Path(__file__).with_name("folder_tools.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, folder_python: str) -> dict[str, Any]:
    """What each tool gave, in one process, because most of the time goes into imports."""
    folder = tmp_path_factory.mktemp("tools")
    make_tokenizer(folder / "tokenizer", 420)
    models = {
        "pretrained": random_like(CONFIG, 1),
        "retrieval": retrieval_from_pretrained(random_like(CONFIG, 1), 2),
        "classifier": classification_from_pretrained(random_like(CONFIG, 1), 3, 2),
    }
    for name, model in models.items():
        write_checkpoint(folder / name, model, folder / "tokenizer", {})
    done = subprocess.run(
        [folder_python, SCRIPT, *(folder / name for name in models), folder],
        cwd=folder,
        env=environment(HF_HOME=str(folder / "hub"), HF_HUB_OFFLINE="1", PYTHONPATH=""),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("graph", ["onnx_1", "onnx_2"])
def test_the_onnx_graph_of_an_exit_gives_the_models_numbers_at_other_shapes(found: dict[str, Any], graph: str) -> None:
    assert found[graph] <= 1e-5


def test_a_lora_adapter_learns_and_is_saved(found: dict[str, Any]) -> None:
    losses = found["lora"]["losses"]
    assert losses[-1] < losses[0] - 0.1
    assert found["lora"]["same"]


def test_dynamic_int8_keeps_the_embeddings(found: dict[str, Any]) -> None:
    assert found["int8"] > 0.99


def test_the_trainer_of_transformers_steps_predicts_and_saves(found: dict[str, Any]) -> None:
    assert found["trainer"] == {"shape": [6, 3], "steps": 3, "difference": 0.0}


def test_sentence_transformers_encodes_in_processes_and_trains(found: dict[str, Any]) -> None:
    assert found["sentences"]["processes"] <= 1e-6
    assert found["sentences"]["moved"] > 1e-3
    assert found["sentences"]["saved"] <= 1e-6


def test_mteb_scores_the_folder_with_its_prompts(found: dict[str, Any]) -> None:
    if found["mteb"] is None:
        pytest.skip("mteb is not installed in this environment (extra dev)")
    assert 0 < found["mteb"]["expected"] < 1
    # mteb rounds to five digits.
    assert found["mteb"]["mteb"] == pytest.approx(found["mteb"]["expected"], abs=1e-4)
