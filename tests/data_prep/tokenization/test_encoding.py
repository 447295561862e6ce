"""Encoding in bulk against sentencepiece itself, and the fall back when gigatoken does not agree."""

import itertools
import logging
from pathlib import Path
from typing import Any

import gigatoken
import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.tokenization import encoding
from data_prep.tokenization.encoding import SAMPLE, Encoder
from data_prep.tokenization.train_tokenizer import TokenizerTrainingConfig, train_model
from mose.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer

SOURCES = sorted(Path(encoding.__file__).parents[1].rglob("*.py"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    chunks = [path.read_text("utf-8")[i : i + 2048] for path in SOURCES for i in range(0, path.stat().st_size, 2048)]
    path.write_bytes(train_model([chunk for chunk in chunks if chunk], TokenizerTrainingConfig(output="", vocabulary_size=800)))
    return path


@pytest.fixture(scope="module")
def encoder(model: Path) -> Encoder:
    return Encoder(SentencePieceTokenizer(model))


@pytest.fixture(scope="module")
def reference(model: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def assert_equal(encoder: Encoder, reference: sentencepiece.SentencePieceProcessor, texts: list[str]) -> None:
    encoded = encoder.encode_batch(texts)
    assert [ids.tolist() for ids in encoded] == [reference.EncodeAsIds(text) for text in texts]
    assert {ids.dtype for ids in encoded} <= {np.dtype(np.uint16)}


def test_gigatoken_encodes_source_files_as_sentencepiece_does(
    encoder: Encoder, reference: sentencepiece.SentencePieceProcessor
) -> None:
    assert encoder.backend == "gigatoken"
    assert_equal(encoder, reference, [*(path.read_text("utf-8") for path in SOURCES), *SAMPLE, ""])


def test_text_that_spells_a_special_token_is_text(encoder: Encoder) -> None:
    texts = ["a <sep> b", "<cls>", "[MASK] <mask>", "<pad><unk>", "plain"]
    special = encoder.tokenizer.special.ids()
    for text, ids in zip(texts, encoder.encode_batch(texts), strict=True):
        assert not np.isin(ids, special).any()
        assert encoder.tokenizer.decode(ids) == text


def test_only_text_that_spells_the_hidden_special_tokens_is_encoded_twice(
    encoder: Encoder, reference: sentencepiece.SentencePieceProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[str] = []
    slow = encoder.tokenizer.encode
    monkeypatch.setattr(encoder.tokenizer, "encode", lambda text: again.append(text) or slow(text))
    hidden = "x \U0010ffff2 y"
    assert_equal(encoder, reference, ["a <sep> b <cls><mask><pad><unk>", hidden, "", "\U0010ffff"])
    assert again == [hidden]


def test_flat_ids_are_those_of_the_texts_one_after_another(encoder: Encoder) -> None:
    texts = ["def f(): pass", "", "<mask>", "x = 1\n"]
    tokens, bounds = encoder.encode_flat(texts)
    assert [tokens[start:end].tolist() for start, end in itertools.pairwise(bounds)] == [
        ids.tolist() for ids in encoder.encode_batch(texts)
    ]
    assert (bounds[0], bounds[-1]) == (0, len(tokens))


def test_gigatoken_alone_would_read_special_tokens_in_text(model: Path) -> None:
    # Why gigatoken is given other spellings; when this fails, it need not be any more.
    ids = gigatoken.Tokenizer.from_sentencepiece(str(model)).encode("a <sep> b")
    assert SentencePieceTokenizer(model).special.sep in ids


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(list(" \n\t<>sepclmak")), max_size=60)))
@example(texts=["<sep", "<sep><sep>", "x<mask>y", "\u2581", "\x00", "\ufeff"])
def test_any_text_is_encoded_as_sentencepiece_does(
    encoder: Encoder, reference: sentencepiece.SentencePieceProcessor, texts: list[str]
) -> None:
    assert_equal(encoder, reference, texts)


def test_no_texts_give_no_ids(encoder: Encoder) -> None:
    assert encoder.encode_batch([]) == []


class Broken:
    """A gigatoken that reads every text as one unknown token."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def encode_batch(self, texts: list[str], parallel: bool) -> Any:
        return self.real.encode_batch(["x" for _ in texts], parallel=parallel)


def test_a_gigatoken_that_differs_is_not_used_and_the_log_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = gigatoken.Tokenizer.from_sentencepiece(str(model))
    monkeypatch.setattr(gigatoken.Tokenizer, "from_sentencepiece", lambda path: Broken(real))
    with caplog.at_level(logging.WARNING):
        encoder = Encoder(SentencePieceTokenizer(model))
    assert encoder.backend == "sentencepiece"
    assert len(caplog.records) == 1
    assert "gigatoken does not agree" in caplog.text
    assert encoder.encode_batch(["def f(): pass"])[0].tolist() == encoder.tokenizer.encode("def f(): pass").tolist()


def test_a_gigatoken_that_cannot_read_the_model_is_not_used(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: str) -> None:
        raise ValueError("unsupported model")

    monkeypatch.setattr(gigatoken.Tokenizer, "from_sentencepiece", refuse)
    assert Encoder(SentencePieceTokenizer(model)).backend == "sentencepiece"
    assert "unsupported model" in caplog.text


def test_a_tokenizer_json_is_encoded_by_tokenizers(tmp_path: Path) -> None:
    import tokenizers

    plain = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<|endoftext|>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<sep>", "<cls>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator([path.read_text("utf-8") for path in SOURCES[:3]], trainer)
    plain.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(HuggingFaceTokenizer(tmp_path / "tokenizer.json"))
    assert encoder.backend == "tokenizers"
    (ids,) = encoder.encode_batch(["a <sep> b"])
    assert not np.isin(ids, encoder.tokenizer.special.ids()).any()
