"""Training a tokenizer: what it is trained on, the same bytes again, losslessness, and sizes that cannot be."""

import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.sources.registry import SourcesConfig, list_repositories
from data_prep.sources.repositories import split_of
from data_prep.tokenization.train_tokenizer import (
    TokenizerTrainingConfig,
    sample_chunks,
    train_model,
    train_tokenizer,
    training_chunks_of,
)
from mose.config import load_config
from mose.errors import MoseError
from mose.tokenizer import SentencePieceTokenizer

WORDS = [
    "def",
    "return",
    "import",
    "class",
    "self",
    "value",
    "for",
    "in",
    "range",
    "if",
    "not",
    "none",
    "print",
    "list",
    "index",
    "total",
    "count",
    "name",
    "café",
]


def made_text(seed: int, num_lines: int) -> str:
    rng = random.Random(seed)
    return "".join("\t" * rng.randrange(3) + " ".join(rng.choices(WORDS, k=rng.randrange(1, 9))) + "\n" for _ in range(num_lines))


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repositories")
    for i in range(12):
        (root / f"r{i}").mkdir()
        (root / f"r{i}" / "a.py").write_text(made_text(i, 300), "utf-8")
        (root / f"r{i}" / "b.py").write_text(made_text(i + 100, 300) + f"# repository r{i}\ncount(x): + {i}1234\n", "utf-8")
    return root


def config_of(repositories: Path, output: Path, **more: object) -> TokenizerTrainingConfig:
    sources = SourcesConfig(directories=(str(repositories),))
    return TokenizerTrainingConfig(output=str(output), sources=sources, **{"vocabulary_size": 400, **more})  # type: ignore[arg-type]


def test_the_same_input_gives_the_same_bytes(repositories: Path, tmp_path: Path) -> None:
    first, second = (train_tokenizer(config_of(repositories, tmp_path / name)).read_bytes() for name in "ab")
    assert first == second


def test_the_model_has_the_special_tokens_first_and_the_config_beside_it(
    repositories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(repositories, tmp_path / "out", held_out_fraction=0.3)
    tokenizer = SentencePieceTokenizer(train_tokenizer(config))
    assert [tokenizer.piece(i) for i in range(6)] == ["<pad>", "<unk>", "<sep>", "<cls>", "<mask>", "<0x00>"]
    assert tokenizer.vocabulary_size == 400
    assert load_config(TokenizerTrainingConfig, tmp_path / "out" / "config.yaml") == config
    printed = capsys.readouterr().out
    assert "400 pieces" in printed
    assert "held-out repositories" in printed


def test_a_newline_is_inside_pieces(repositories: Path, tmp_path: Path) -> None:
    tokenizer = SentencePieceTokenizer(train_tokenizer(config_of(repositories, tmp_path / "out")))
    assert any("\n" in tokenizer.piece(i) and len(tokenizer.piece(i)) > 1 for i in range(tokenizer.vocabulary_size))


def test_held_out_repositories_are_not_trained_on(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def remember(chunks: list[str], config: TokenizerTrainingConfig) -> bytes:
        seen.extend(chunks)
        return train_model(chunks, config)

    monkeypatch.setattr("data_prep.tokenization.train_tokenizer.train_model", remember)
    train_tokenizer(config_of(repositories, tmp_path / "out", held_out_fraction=0.4, seed=5))
    text = "".join(seen)
    held_out = {f"r{i}" for i in range(12) if split_of(f"r{i}", 5, 0.4) == "held_out"}
    assert 0 < len(held_out) < 12
    assert {name for name in (f"r{i}" for i in range(12)) if f"# repository {name}\n" in text} == {
        f"r{i}" for i in range(12)
    } - held_out


def test_the_sample_is_spread_over_repositories_and_within_its_size(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.tokenization.train_tokenizer.MIN_REPOSITORY_BYTES", 1)
    config = config_of(repositories, tmp_path, chunk_characters=100)
    refs = list_repositories(config.sources)
    sizes = {ref.name: sum(len(chunk.encode()) for chunk in sample_chunks([ref], config, 10**9)) for ref in refs}
    taken = sum(len(chunk.encode()) for chunk in sample_chunks(refs, config, 30_000))
    assert min(sizes.values()) > 5_000
    assert 25_000 < taken <= 30_000
    assert list(sample_chunks(refs, config, 30_000)) == list(sample_chunks(list(reversed(refs)), config, 30_000))


def test_chunks_keep_the_text_but_long_runs_and_reserved_characters() -> None:
    text = "ab\n" * 50 + "x" * 7 + "=" * 8 + "y" * 30 + "\u2581\u2585z\n"
    chunks = training_chunks_of(text, 10, 8)
    assert "".join(chunks) == "ab\n" * 50 + "x" * 7 + "z\n"
    assert max(map(len, chunks)) == 10
    assert training_chunks_of("", 10, 8) == []


@pytest.fixture(scope="module")
def processor(repositories: Path, tmp_path_factory: pytest.TempPathFactory) -> sentencepiece.SentencePieceProcessor:
    path = train_tokenizer(config_of(repositories, tmp_path_factory.mktemp("trained")))
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581") | st.sampled_from(list(" \t\r\n<>"))))
@example("  two  \t\ttabs\r\n\r\n \n trailing ")
@example("\x00\ufeff\u3000e\u0301\U0001f389\u2585\u2047")
@example(" " * 500 + "\n" * 500)
@example("<sep> <cls> <mask> <pad> <unk> <s> </s> <0x0A> [MASK]")
def test_any_text_without_u2581_comes_back(processor: sentencepiece.SentencePieceProcessor, text: str) -> None:
    ids = processor.EncodeAsIds(text)
    assert processor.DecodeIds(ids) == text
    assert not set(ids) & set(range(5))


def test_pieces_are_the_text_with_no_space_put_in_front_and_digits_alone(processor: sentencepiece.SentencePieceProcessor) -> None:
    text = "def count(x):  return x + 1234\n"
    pieces = [processor.IdToPiece(i) for i in processor.EncodeAsIds(text)]
    assert "".join(pieces).replace("\u2581", " ") == text
    assert all(len(piece) == 1 for piece in pieces if set(piece) & set("1234"))


def test_u2581_comes_back_as_a_space(processor: sentencepiece.SentencePieceProcessor) -> None:
    assert processor.DecodeIds(processor.EncodeAsIds("a\u2581b")) == "a b"


def test_a_vocabulary_that_the_text_cannot_fill_is_refused_with_the_limit(repositories: Path, tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"vocabulary_size: is 49152, but this text can fill at most \d+") as error:
        train_tokenizer(config_of(repositories, tmp_path / "out", vocabulary_size=49_152))
    limit = int(str(error.value).split("at most ")[1].split(";")[0])
    train_tokenizer(config_of(repositories, tmp_path / "out", vocabulary_size=limit))


def test_a_vocabulary_too_small_for_the_characters_is_refused(repositories: Path, tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"vocabulary_size: is 200, expected at least \d+ for the characters"):
        train_tokenizer(config_of(repositories, tmp_path / "out", vocabulary_size=200))
    assert not (tmp_path / "out").exists()


def test_repositories_without_usable_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r" / "a").mkdir(parents=True)
    (tmp_path / "r" / "a" / "b.bin").write_bytes(b"\0\1\2")
    with pytest.raises(MoseError, match="none of the 1 training repositories has usable text"):
        train_tokenizer(config_of(tmp_path / "r", tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocabulary_size", 0),
        ("max_training_bytes", 0),
        ("chunk_characters", 4097),
        ("max_run", 1),
        ("held_out_fraction", 1.0),
        ("num_threads", 0),
    ],
)
def test_values_that_make_no_sense_are_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(MoseError, match=name):
        config_of(tmp_path, tmp_path, **{name: value})
