"""Both kinds of tokenizer behind one interface: special tokens, text that spells them, losslessness, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from data_prep.tokenization.train_tokenizer import TokenizerTrainingConfig, train_model
from mose.errors import MoseError
from mose.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer

CODE = [f"def function_{i}(value):\n\treturn value + {i * 37}  # café\n" for i in range(200)]
SPELLINGS = "a <sep> b <cls><mask> [MASK] <pad> <unk> <|endoftext|> <0x0A>"


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(train_model(CODE, TokenizerTrainingConfig(output="", vocabulary_size=340)))
    return path


@pytest.fixture(scope="module")
def hugging_face_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hugging_face") / "tokenizer.json"
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<|endoftext|>"], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CODE, trainer)
    tokenizer.add_special_tokens(["<sep>", "<cls>", "<mask>"])
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module", params=["sentencepiece", "hugging_face"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(request.getfixturevalue(f"{request.param}_file"))


def test_text_that_spells_a_special_token_is_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(SPELLINGS)
    assert not np.isin(ids, tokenizer.special.ids()).any()
    assert tokenizer.decode(ids) == SPELLINGS


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581") | st.sampled_from(list(" \t\r\n<"))))
def test_any_text_without_u2581_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.dtype == tokenizer.dtype == np.uint16


def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [*CODE[:5], "", " ", SPELLINGS]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [tokenizer.encode(text).tolist() for text in texts]


def test_special_tokens_are_left_out_of_decoded_text(tokenizer: Tokenizer) -> None:
    special = tokenizer.special
    ids = [special.pad, special.sep, *tokenizer.encode("x = 1").tolist(), special.mask, special.cls]
    assert tokenizer.decode(ids) == "x = 1"


def test_ordinary_ids_are_all_but_the_special_ones(tokenizer: Tokenizer) -> None:
    ordinary = set(tokenizer.ordinary_ids().tolist())
    assert ordinary | set(tokenizer.special.ids()) == set(range(tokenizer.vocabulary_size))
    assert not ordinary & set(tokenizer.special.ids())


def test_special_pieces_by_name(tokenizer: Tokenizer) -> None:
    assert [tokenizer.piece(getattr(tokenizer.special, name)) for name in ("sep", "cls", "mask")] == ["<sep>", "<cls>", "<mask>"]


def test_sentencepiece_ids_are_sentencepieces_own(sentencepiece_file: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    assert load_tokenizer(sentencepiece_file).encode(CODE[0]).tolist() == processor.EncodeAsIds(CODE[0])


def test_a_copy_in_a_folder_is_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.copy_to(tmp_path)
    copy = load_tokenizer(tmp_path)
    assert type(copy) is type(tokenizer)
    assert copy.fingerprint() == tokenizer.fingerprint()
    if copy.path.suffix == ".json":
        values = json.loads(copy.path.read_text("utf-8"))
        copy.path.write_text(json.dumps({**values, "post_processor": {"type": "ByteLevel"}}), "utf-8")
        assert copy.fingerprint() == tokenizer.fingerprint(), "special tokens around a text change none of its ids"
        copy.path.write_text(json.dumps({**values, "pre_tokenizer": None}), "utf-8")
    else:
        copy.path.write_bytes(copy.path.read_bytes() + b"\n")
    assert copy.fingerprint() != tokenizer.fingerprint()


def test_rows_that_no_token_uses_are_counted(hugging_face_file: Path) -> None:
    assert HuggingFaceTokenizer(hugging_face_file, vocabulary_size=512).vocabulary_size == 512


def test_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"holds neither tokenizer\.model nor tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(MoseError, match=r"gone\.model: no such tokenizer file"):
        load_tokenizer(tmp_path / "gone.model")


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"not a tokenizer", b"{}", b"\xff\xfe"])
def test_a_broken_tokenizer_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MoseError, match=name):
        load_tokenizer(tmp_path / name)


def test_a_model_without_the_special_tokens_is_refused(hugging_face_file: Path, tmp_path: Path) -> None:
    values = json.loads(hugging_face_file.read_text("utf-8"))
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] != "<mask>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(MoseError, match="has no <mask> token"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_of_another_project_is_refused(tmp_path: Path) -> None:
    prefix = tmp_path / "other"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CODE), model_prefix=str(prefix), vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    with pytest.raises(MoseError, match="has no <pad> token"):
        SentencePieceTokenizer(prefix.with_suffix(".model"))
