"""Texts to chunks in batches: the same chunks whatever the batches, and none that repeats evaluation text."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.filters.decontamination import DecontaminationConfig, Decontaminator
from data_prep.filters.filters import FilterCounts
from data_prep.packing.config import PackingConfig
from data_prep.pipeline import chunker as chunker_module
from data_prep.pipeline.chunker import Chunker, TextBatcher
from data_prep.pipeline.shuffle_buffer import ChunkedFiles, join_files
from data_prep.sources.repositories import SourceFile, TextFile, content_sha1
from mose.tokenizer import Tokenizer
from tests.data_prep.repositories import made_text
from tests.datasets import make_tokenizer

CONFIG = PackingConfig(sequence_length=128).resolve()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 600)


def text_file(number: int, text: str) -> TextFile:
    content = text.encode()
    source = SourceFile(f"r{number % 4}", f"/{number}.py", content, "Python", (), "permissive", content_sha1(content))
    return TextFile(source, text)


def chunk_all(chunker: Chunker, files: list[TextFile], counts: FilterCounts) -> list[ChunkedFiles]:
    parts: list[ChunkedFiles] = []
    batcher = TextBatcher(chunker, parts.append, counts)
    for file in files:
        batcher.add(file)
    batcher.flush()
    batcher.flush()
    return parts


def test_chunks_do_not_depend_on_the_batches(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    chunker = Chunker(tokenizer, CONFIG)
    files = [text_file(i, made_text(1 + i % 9, str(i)) + "\u2581é" * (i % 3)) for i in range(40)]
    found = []
    for batch_characters in (1, 700, 1 << 22):
        monkeypatch.setattr(chunker_module, "BATCH_CHARACTERS", batch_characters)
        parts = chunk_all(chunker, files, FilterCounts())
        assert (len(parts) == 1) == (batch_characters == 1 << 22)
        found.append(join_files(parts))
    for other in found[1:]:
        assert other.lineage == found[0].lineage
        for name in ("tokens_N", "starts_C", "lengths_C", "bytes_C2", "file_of_C"):
            np.testing.assert_array_equal(getattr(other, name), getattr(found[0], name))
    assert found[0].lengths_C.max() <= CONFIG.piece_tokens
    last = np.diff(found[0].file_of_C, append=len(files)) > 0
    assert found[0].bytes_C2[last, 1].tolist() == [len(file.source.content) for file in files]


def test_chunks_that_repeat_evaluation_text_are_left_out_and_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = [text_file(i, made_text(30, str(i))) for i in range(5)]
    evaluation = tmp_path / "questions.txt"
    lines = files[3].text.splitlines()
    evaluation.write_text("\n".join(lines[10:14]), "utf-8")
    config = DecontaminationConfig(files=(str(evaluation),), ngram_words=6, min_words=6, min_distinct_words=3)
    counts = FilterCounts()
    (all_chunks,) = chunk_all(Chunker(tokenizer, CONFIG), files, counts)
    (kept,) = chunk_all(Chunker(tokenizer, CONFIG, Decontaminator(config)), files, counts)
    dropped = len(all_chunks.lengths_C) - len(kept.lengths_C)
    assert counts.contaminated["questions.txt"].files == dropped > 0
    assert (np.bincount(kept.file_of_C, minlength=5) < np.bincount(all_chunks.file_of_C, minlength=5)).tolist() == [
        False, False, False, True, False
    ]  # fmt: skip
    start = len("\n".join(lines[:10])) + 1
    end = start + len("\n".join(lines[10:14]))
    spans = kept.bytes_C2[kept.file_of_C == 3].tolist()
    assert not [span for span in spans if span[0] < end and span[1] > start and min(span[1], end) - max(span[0], start) > 100]
