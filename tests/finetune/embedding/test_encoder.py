"""Covers `Encoder`: parity with sentence-transformers at each exit, batches, instructions, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.embedding.encoder import Encoder
from mose.errors import MoseError
from tests.finetune.conftest import make_pairs

TEXTS = [pair.code_a for pair in make_pairs(9)] + ["", "x", "def long():\n" + "    y = read(file)\n" * 80, "na\u00efve\ttabs  "]


SCRIPT = """
import sys
import numpy as np
from sentence_transformers import SentenceTransformer
folder, out = sys.argv[1:3]
texts = np.load(sys.argv[3]).tolist()
found = {}
for layer in (1, 2, 4):
    model = SentenceTransformer(folder, trust_remote_code=True, device="cpu", model_kwargs={"exit_layer": layer})
    found[f"default {layer}"] = model.encode(texts)
    for name in ("python", "query"):
        found[f"{name} {layer}"] = model.encode(texts, prompt_name=name)
    found[f"own {layer}"] = model.encode(texts, prompt="retrieve<sep>")
np.savez(out, **found)
"""


def test_equal_to_sentence_transformers_at_each_exit(retrieval: Path, tmp_path: Path) -> None:
    """The folder as sentence-transformers opens it: default, language, query and own instructions; one text is truncated."""
    np.save(tmp_path / "texts.npy", np.array(TEXTS))
    words = [str(path) for path in (retrieval, tmp_path / "theirs.npz", tmp_path / "texts.npy")]
    variables = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", SCRIPT, *words], env=variables, check=True, capture_output=True)
    ours = {layer: Encoder.from_pretrained(retrieval, exit=layer) for layer in (1, 2, 4)}
    options = {"default": {}, "python": {"language": "Python"}, "query": {"kind": "query"}, "own": {"instruction": "retrieve"}}
    with np.load(tmp_path / "theirs.npz") as theirs:
        assert len(theirs.files) == 12
        for name in theirs.files:
            kind, layer = name.split()
            assert np.abs(ours[int(layer)].encode(TEXTS, **options[kind]) - theirs[name]).max() < 1e-5, name


def test_batches_exits_and_order_do_not_change_embeddings(retrieval: Path) -> None:
    together = Encoder.from_pretrained(retrieval, exit=[4, 1, 2])
    assert together.exits == (1, 2, 4)
    tables = together.encode_exits(TEXTS)
    alone = Encoder.from_pretrained(retrieval, exit=2, batch_tokens=1)
    assert np.abs(tables[2] - alone.encode(TEXTS)).max() < 2e-6
    assert np.abs(tables[2][::-1] - alone.encode(TEXTS[::-1])).max() < 2e-6
    assert len(alone.model.starEncoder2.layers) == 2
    for table in tables.values():
        assert table.dtype == np.float32 and np.linalg.norm(table, axis=1) == pytest.approx(np.ones(len(TEXTS)), rel=1e-5)
    assert alone.encode([]).shape == (0, 32)
    half = Encoder.from_pretrained(retrieval, exit=2, dtype="bfloat16").encode(TEXTS)
    assert half.dtype == np.float32 and 1e-5 < np.abs(half - tables[2]).max() < 5e-2


def test_languages_of_each_text(retrieval: Path) -> None:
    encoder = Encoder.from_pretrained(retrieval, exit=1)
    mixed = encoder.encode(["a", "a", "a"], language=["Python", "", "Go"])
    for place, language in enumerate(("Python", "", "Go")):
        assert np.abs(mixed[place] - encoder.encode(["a"], language=language)[0]).max() < 2e-6


def test_wrong_arguments_are_one_line(retrieval: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"exits: 3: .* has exits \[1, 2, 4\]"):
        Encoder.from_pretrained(retrieval, exit=3)
    with pytest.raises(MoseError, match=r"exit: an empty list, expected some of \[1, 2, 4\]"):
        Encoder.from_pretrained(retrieval, exit=[])
    with pytest.raises(MoseError, match=r"dtype: 'int8', expected one of float32, bfloat16"):
        Encoder.from_pretrained(retrieval, dtype="int8")
    with pytest.raises(MoseError, match=r"architectures is ModularStarEncoder, expected ModularStarEncoderForRetrieval"):
        Encoder.from_pretrained(checkpoint)
    with pytest.raises(MoseError, match=r"config.json: no such file"):
        Encoder.from_pretrained(tmp_path)
    encoder = Encoder.from_pretrained(retrieval, exit=1)
    for texts, options, message in (
        ("text", {}, r"texts: one text, expected a list of texts"),
        (["a", None], {}, r"texts: number 1 is of type NoneType, expected text"),
        (["a"], {"kind": "word"}, r"kind: 'word', expected one of query, code"),
        (["a"], {"language": ["Go", "C"]}, r"language: 2 languages for 1 texts"),
    ):
        with pytest.raises(MoseError, match=message):
            encoder.encode(texts, **options)
    encoder.model.projection_heads[0][2].bias.data.fill_(float("nan"))
    with pytest.raises(MoseError, match=r"exit 1: the embedding of text 0 is not a finite number"):
        encoder.encode(["a"])
