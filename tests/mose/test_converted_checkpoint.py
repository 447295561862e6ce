"""Covers the converted checkpoint: round trips, truncation at each exit, and every broken folder as one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mose.converted_checkpoint import (
    load_pretrained,
    load_retrieval,
    random_like,
    retrieval_from_pretrained,
    truncate_at,
    write_checkpoint,
)
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder
from tests.datasets import make_tokenizer

CONFIG = ModularStarEncoderConfig(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    matryoshka_layers=[1, 2, 4],
)
IDS_BT = torch.arange(5, 25)[None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "tokenizer")
    write_checkpoint(tmp_path / "checkpoint", random_like(CONFIG, 1), tmp_path / "tokenizer", {"step": 3})
    return tmp_path / "checkpoint"


def outputs(model: ModularStarEncoder) -> Any:
    with torch.no_grad():
        return model(input_ids=IDS_BT, output_prediction_logits=True)


def test_round_trip_is_exact(folder: Path) -> None:
    ours, read = random_like(CONFIG, 1), load_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), read.parameters(), strict=True))
    for a, b in zip(outputs(ours).exit_hidden_states, outputs(read).exit_hidden_states, strict=True):
        assert torch.equal(a, b)
    assert json.loads((folder / "facts.json").read_text()) == {"step": 3}
    assert (folder / "tokenizer.model").is_file()


@pytest.mark.parametrize("exit_layer", [1, 2, 4])
def test_truncated_model_gives_that_exit(exit_layer: int, folder: Path, tmp_path: Path) -> None:
    whole = load_pretrained(folder)
    index = CONFIG.matryoshka_layers.index(exit_layer)
    write_checkpoint(tmp_path / "cut", truncate_at(whole, exit_layer), folder, {})
    cut, expected = outputs(load_pretrained(tmp_path / "cut")), outputs(whole)
    assert torch.equal(cut.last_hidden_state, expected.exit_hidden_states[index])
    assert torch.equal(cut.seq_relationship_logits[0], expected.seq_relationship_logits[index])
    assert torch.equal(cut.prediction_logits[0], expected.prediction_logits[index])
    names = load_file(tmp_path / "cut" / "model.safetensors").keys()
    assert ("starEncoder2.norm.weight" in names) == (exit_layer == 4)
    assert not any(f"layers.{exit_layer}." in name for name in names)


def test_retrieval_shares_the_trunk_and_truncates_its_heads(folder: Path, tmp_path: Path) -> None:
    pretrained = load_pretrained(folder)
    retrieval = retrieval_from_pretrained(pretrained, seed=2)
    assert retrieval.starEncoder2 is pretrained.starEncoder2
    write_checkpoint(tmp_path / "retrieval", retrieval, folder, {})
    read = load_retrieval(tmp_path / "retrieval")
    with torch.no_grad():
        expected = read(input_ids=IDS_BT).projected_pooled_normalized
        cut = truncate_at(read, 2)(input_ids=IDS_BT).projected_pooled_normalized
    assert torch.equal(cut[0], expected[1])
    # Heads drawn at the trunk's own deviation would shrink embeddings to noise.
    assert float(read.projection_heads[0][0].weight.detach().std()) == pytest.approx(32**-0.5, rel=0.1)


def test_existing_folder_is_never_overwritten(folder: Path) -> None:
    with pytest.raises(MoseError, match="already exists"):
        write_checkpoint(folder, random_like(CONFIG, 1), folder, {})


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"holds neither tokenizer\.model"):
        write_checkpoint(tmp_path / "new", random_like(CONFIG, 1), tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_no_such_exit(folder: Path) -> None:
    with pytest.raises(MoseError, match=r"exit 3: the model has exits \[1, 2, 4\]"):
        truncate_at(load_pretrained(folder), 3)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_broken_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"config\.json: no such file"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(MoseError, match="expected ModularStarEncoderForRetrieval"):
        load_retrieval(folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(MoseError, match=r"model\.safetensors: not a whole safetensors file"):
        load_pretrained(folder)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "cls.predictions.bias"}, weights)
    with pytest.raises(MoseError, match=r"tensor cls\.predictions\.bias is missing"):
        load_pretrained(folder)
    save_file({**tensors, "surprise": torch.zeros(1)}, weights)
    with pytest.raises(MoseError, match="tensor surprise is not expected"):
        load_pretrained(folder)
    save_file({**tensors, "cls.predictions.bias": torch.zeros(7)}, weights)
    with pytest.raises(MoseError, match=r"cls\.predictions\.bias is \[7\], config\.json makes it \[60\]"):
        load_pretrained(folder)
    change_config(folder, model_type="bert")
    with pytest.raises(MoseError, match="model_type is 'bert'"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(MoseError, match=r"config\.json: not JSON"):
        load_pretrained(folder)


def test_sentence_transformers_gives_our_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    tokenizer = make_tokenizer(tmp_path / "with_bytes", 420)
    config = ModularStarEncoderConfig(**{**CONFIG.to_dict(), "vocab_size": 420})
    retrieval = retrieval_from_pretrained(random_like(config, 1), 2)
    write_checkpoint(tmp_path / "retrieval", retrieval, tmp_path / "with_bytes", {})
    texts = ["abc def", "a", "for x in table: print(x)"]
    theirs = torch.tensor(SentenceTransformer(str(tmp_path / "retrieval"), trust_remote_code=True, device="cpu").encode(texts))
    model = load_retrieval(tmp_path / "retrieval")
    for text, embedding in zip(texts, theirs, strict=True):
        ids_N = torch.tensor([tokenizer.special.sep, *tokenizer.encode(text).tolist(), tokenizer.special.cls])
        with torch.no_grad():
            bounds = torch.tensor([0, len(ids_N)], dtype=torch.int32)
            ours = model.embed(ids_N, torch.arange(len(ids_N)), bounds, len(ids_N))[-1][0]
        assert (ours - embedding).abs().max() <= 1e-5
