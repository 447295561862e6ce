"""Covers the converted checkpoint: round trips, truncation at each exit, and every broken folder as one line."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mose.checkpoint.converted_checkpoint import (
    load_pretrained,
    load_retrieval,
    random_like,
    retrieval_from_pretrained,
    truncate_at,
    write_checkpoint,
)
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder, ModularStarEncoderForRetrieval
from mose.tokenizer import Tokenizer, load_tokenizer
from tests.commands import environment
from tests.datasets import make_tokenizer
from tests.mose.byte_tokenizer import make_byte_tokenizer

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
    index = CONFIG.exit_layers.index(exit_layer)
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


# Run where no package of ours can be imported: the folder's embeddings of each exit, opened by each library.
READER = """
import json, sys
for name in ("mose", "pretrain", "finetune", "data_prep", "cluster"):
    sys.modules[name] = None
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
folder, texts, exits = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
found = {}
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
for layer in exits:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, exit_layer=layer)
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(rows.input_ids, rows.attention_mask)
    state = torch.nn.functional.normalize(output.last_hidden_state[:, -1], dim=-1)
    found[f"transformers {layer}"] = state.tolist()
    encoder = SentenceTransformer(folder, trust_remote_code=True, device="cpu", model_kwargs={"exit_layer": layer})
    found[f"layers {layer}"] = len(encoder[0].model.starEncoder2.layers)
    found[f"plain {layer}"] = encoder.encode(texts, prompt="").tolist()
    found[f"default {layer}"] = encoder.encode(texts).tolist()
    found[f"python {layer}"] = encoder.encode(texts, prompt_name="python").tolist()
    found[f"query {layer}"] = encoder.encode_query(texts).tolist()
    found[f"document {layer}"] = encoder.encode_document(texts).tolist()
print(json.dumps(found))
"""
TEXTS = ["abc def", "a", "for x in table: print(x)"]


def our_embedding(model: ModularStarEncoderForRetrieval, tokenizer: Tokenizer, parts: list[str], index: int) -> torch.Tensor:
    """What our own stages compute of `<sep>` part `<sep>` part ... `<cls>` at exit number `index`."""
    special = tokenizer.special
    ids = [token for part in parts for token in (special.sep, *tokenizer.encode(part).tolist())] + [special.cls]
    with torch.no_grad():
        bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
        return model.embed(torch.tensor(ids), torch.arange(len(ids)), bounds, len(ids))[index][0]


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer.json"])
def test_other_libraries_give_our_embeddings_at_each_exit_without_our_packages(kind: str, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tokenizer", 420)
    if kind == "tokenizer.json":
        make_byte_tokenizer(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    config = ModularStarEncoderConfig(**{**CONFIG.to_dict(), "vocab_size": 420, "initializer_range": 0.2})
    retrieval = retrieval_from_pretrained(random_like(config, 1), 2)
    write_checkpoint(tmp_path / "retrieval", retrieval, tmp_path / "tokenizer", {})
    assert load_tokenizer(tmp_path / "retrieval").fingerprint() == tokenizer.fingerprint()
    line = [sys.executable, "-c", READER, str(tmp_path / "retrieval"), json.dumps(TEXTS), "[1, 2, 4]"]
    done = subprocess.run(line, cwd=tmp_path, env=environment(HF_HOME=str(tmp_path)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    document, python = "Represent this code snippet for retrieval:", "Represent this python code snippet for retrieval:"
    query = "Represent this code description for retrieving supporting snippets of code:"
    model = load_retrieval(tmp_path / "retrieval")
    before = {
        "transformers": [],
        "plain": [],
        "default": [document],
        "document": [document],
        "python": [python],
        "query": [query],
    }
    for index, layer in enumerate(config.exit_layers):
        assert found[f"layers {layer}"] == layer
        for name, instruction in before.items():
            for text, theirs in zip(TEXTS, found[f"{name} {layer}"], strict=True):
                ours = our_embedding(model, tokenizer, [*instruction, text], index)
                assert (ours - torch.tensor(theirs)).abs().max() <= 1e-5, (name, layer, text)


def test_an_exit_that_the_model_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"exit_layer: 3, expected one of the model's exits \[1, 2, 4\]"):
        ModularStarEncoder(ModularStarEncoderConfig(**CONFIG.to_dict()), exit_layer=3)


def test_a_folder_without_the_sep_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    make_byte_tokenizer(tmp_path / "tokenizer", specials=("<|endoftext|>", "<cls>", "<mask>"))
    with pytest.raises(MoseError, match=r"tokenizer\.json: has no <sep> token"):
        write_checkpoint(tmp_path / "new", random_like(CONFIG, 1), tmp_path / "tokenizer", {})


@pytest.mark.parametrize("kind", [ModularStarEncoder, ModularStarEncoderForRetrieval], ids=lambda kind: kind.__name__)
def test_every_tensor_that_a_file_lacks_is_initialised(kind: type[ModularStarEncoder], folder: Path, tmp_path: Path) -> None:
    """New memory is filled with NaN here, so a parameter that nothing sets is seen; the tensors in the file are kept."""
    if kind is ModularStarEncoderForRetrieval:
        retrieval = retrieval_from_pretrained(load_pretrained(folder), 3)
        write_checkpoint(tmp_path / "retrieval", retrieval, folder, {})
        folder = tmp_path / "retrieval"
    path = folder / "model.safetensors"
    stored = load_file(path)
    # Of each kind of tensor the first stays, so that a module of which one parameter is missing is covered as well.
    first = re.compile(r"starEncoder2\.layers\.0\..*weight")
    kept = {name: value for name, value in stored.items() if first.fullmatch(name)}
    save_file(kept, path, {"format": "pt"})
    torch.use_deterministic_algorithms(True)
    try:
        read = kind.from_pretrained(folder)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, parameter in read.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if name in kept:
            assert torch.equal(parameter, kept[name]), name
        elif name.lower().endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_weights_that_are_not_finite_are_refused(value: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    stored = load_file(path)
    stored["starEncoder2.norm.weight"][7] = value
    save_file(stored, path, {"format": "pt"})
    with pytest.raises(MoseError, match="tensor starEncoder2.norm.weight has 1 values that are not finite") as caught:
        load_pretrained(folder)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith(f"(the first is {value} at 7)")
