"""What pieces share with evaluation files, against a plain search; which n-grams count; and how drops are told."""

import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.filters import decontamination as module
from data_prep.filters.decontamination import Contamination, DecontaminationConfig, Decontaminator, drop_contaminated
from data_prep.filters.dropped_log import DroppedLog
from data_prep.filters.filters import FilterCounts
from data_prep.sources.repositories import SourceFile, TextFile
from data_prep.tools.dropped import read_dropped
from mose.array_types import INT64_ARRAY
from mose.errors import MoseError

WORD = re.compile(rb"[0-9A-Za-z_\x80-\xff]{1,64}")
# Few words, so that texts share many n-grams by chance.
TOKENS = st.sampled_from(["a", "B", "b", "c_1", "7", "x" * 70, "é", " ", "\n", "-", ", "])
TEXTS = st.lists(TOKENS, max_size=40).map("".join)
QUESTION = "Return the sum of the squares of all even numbers below n, or None where there is no such number."


def write_examples(folder: Path, *examples: object, name: str = "questions.jsonl") -> str:
    (folder / name).write_text("\n".join(map(json.dumps, examples)))
    return str(folder / name)


def whole(text: bytes) -> INT64_ARRAY:
    return np.array([0, len(text)])


def found_in(text: str, config: DecontaminationConfig) -> Contamination | None:
    return Decontaminator(config).find_batch([text.encode()], [whole(text.encode())])[0][0]


def reference_ngrams(files: list[list[list[str]]], config: DecontaminationConfig) -> dict[tuple[bytes, ...], int]:
    """Every n-gram that drops a piece, with the number of its file."""
    owners = defaultdict(set)
    examples = [(file, example) for file, examples in enumerate(files) for example in examples]
    for number, (_, texts) in enumerate(examples):
        for text in texts:
            words = [word.lower() for word in WORD.findall(text.encode())]
            size = min(len(words), config.ngram_words)
            for first in range(len(words) - size + 1 if size >= config.min_words else 0):
                owners[tuple(words[first : first + size])].add(number)
    return {
        ngram: examples[min(numbers)][0]
        for ngram, numbers in owners.items()
        if len(numbers) <= config.max_examples
        and len({word for word in ngram if not word[:1].isdigit()}) >= config.min_distinct_words
    }


def reference_matches(text: bytes, ngrams: dict[tuple[bytes, ...], int]) -> list[tuple[int, int, int]]:
    """First byte, end and file of each match."""
    spans = [match.span() for match in WORD.finditer(text)]
    words = [text[start:end].lower() for start, end in spans]
    return [
        (spans[first][0], spans[first + size - 1][1], ngrams[tuple(words[first : first + size])])
        for size in {len(ngram) for ngram in ngrams}
        for first in range(len(words) - size + 1)
        if tuple(words[first : first + size]) in ngrams
    ]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.lists(TEXTS, max_size=2), max_size=3), min_size=1, max_size=2),
    st.lists(TEXTS, min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(4, 60),
    st.data(),
)
def test_the_same_pieces_as_a_plain_search_finds(
    files: list[list[list[str]]],
    texts: list[str],
    min_words: int,
    more_words: int,
    max_examples: int,
    block_bytes: int,
    data: st.DataObject,
) -> None:
    contents = [text.encode() for text in texts]
    bounds = [data.draw(st.lists(st.integers(0, len(content)), max_size=3)) for content in contents]
    offsets = [np.unique([0, *inner, len(content)]) for inner, content in zip(bounds, contents, strict=True)]
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(module, "_BLOCK_BYTES", block_bytes):
        names = [write_examples(Path(folder), *examples, name=f"{i}.jsonl") for i, examples in enumerate(files)]
        distinct = min(2, min_words)
        size = max(min_words + more_words, 2)
        config = DecontaminationConfig(tuple(names), (), size, min_words, distinct, max_examples)
        found = Decontaminator(config).find_batch(contents, offsets)
    ngrams = reference_ngrams(files, config)
    for content, bound, pieces in zip(contents, offsets, found, strict=True):
        matches = reference_matches(content, ngrams)
        assert len(pieces) == len(bound) - 1
        for piece, hit in enumerate(pieces):
            own = [match for match in matches if match[0] < bound[piece + 1] and match[1] > bound[piece]]
            assert (hit.matches if hit else 0) == len(own)
            if hit:
                assert hit.file in {f"{file}.jsonl" for start, _, file in own if start == min(own)[0]}


def test_layout_case_and_punctuation_hide_nothing(tmp_path: Path) -> None:
    config = DecontaminationConfig((write_examples(tmp_path, {"prompt": QUESTION}),))
    hidden = "x = 1\n# " + "\n\t#  ".join(QUESTION.upper().replace(",", " --").split()) + "\ny = 2"
    hit = found_in(hidden, config)
    assert hit is not None
    assert (hit.file, hit.matches) == ("questions.jsonl", 20 - 13 + 1)
    assert hit.text.startswith("RETURN # THE # SUM # OF")
    assert hit.text.endswith("SUCH # NUMBER")


def test_one_word_fewer_in_common_is_not_a_match(tmp_path: Path) -> None:
    config = DecontaminationConfig((write_examples(tmp_path, {"prompt": QUESTION}),))
    words = QUESTION.split()
    assert found_in(" ".join(words[2:15]), config) is not None
    assert found_in(" ".join(words[2:14]), config) is None


def test_a_match_over_several_pieces_counts_for_each_of_them(tmp_path: Path) -> None:
    decontaminator = Decontaminator(DecontaminationConfig((write_examples(tmp_path, QUESTION),)))
    text = ("before\n" * 10 + QUESTION + "\nafter" * 10).encode()
    start = text.index(b"Return")
    offsets = np.array([0, start, start + 20, start + 40, start + len(QUESTION) - 1, len(text)])
    assert [hit is not None for hit in decontaminator.find_batch([text], [offsets])[0]] == [False, True, True, True, False]


def test_short_texts_count_as_a_whole_and_shorter_ones_not_at_all(tmp_path: Path) -> None:
    short, shorter = "how to check if a variable is iterable", "how to check if a path exists"
    decontaminator = Decontaminator(DecontaminationConfig((write_examples(tmp_path, short, shorter, "", "x"),)))
    assert decontaminator.num_ngrams == 1
    assert decontaminator.num_short_texts == 2
    texts = [f"# {short}?\n".encode(), f"# {short[:-9]}\n".encode(), f"# {shorter}\n".encode(), b""]
    assert [hits[0] is not None for hits in decontaminator.find_batch(texts, [whole(text) for text in texts])] == [1, 0, 0, 0]


def test_texts_side_by_side_make_no_match(tmp_path: Path) -> None:
    path = write_examples(tmp_path, [QUESTION[:50], QUESTION[50:]])
    decontaminator = Decontaminator(DecontaminationConfig((path,), min_words=13))
    assert decontaminator.find_batch([QUESTION.encode()], [whole(QUESTION.encode())]) == [[None]]
    decontaminator = Decontaminator(DecontaminationConfig((write_examples(tmp_path, QUESTION),)))
    halves = [QUESTION[:50].encode(), QUESTION[50:].encode()]
    assert decontaminator.find_batch(halves, [whole(half) for half in halves]) == [[None], [None]]
    texts = [QUESTION.encode() + b" " + halves[0], halves[1]]
    ((hit,), (other,)) = decontaminator.find_batch(texts, [whole(text) for text in texts])
    assert (hit and hit.matches, other) == (20 - 13 + 1, None)


def test_tables_of_figures_and_what_many_examples_share_drop_nothing(tmp_path: Path) -> None:
    figures = ", ".join(map(str, range(40))) + ", x, y, x, y" * 10
    idiom = "for (int i = 0; i < n; i++) for (int j = 0; j < n; j++) sum += values[i][j];"
    path = write_examples(tmp_path, figures, *({"id": i, "code": idiom} for i in range(11)))
    assert found_in(figures, DecontaminationConfig((path,))) is None
    assert found_in(idiom, DecontaminationConfig((path,))) is None
    assert found_in(figures, DecontaminationConfig((path,), min_distinct_words=0)) is not None
    assert found_in(idiom, DecontaminationConfig((path,), max_examples=11)) is not None


def test_numbers_are_no_distinct_words(tmp_path: Path) -> None:
    four, five = "a 1 b 2 c 3 d 4 5 6 7 8 9", "a 1 b 2 c 3 d 4 e 6 7 8 9"
    config = DecontaminationConfig((write_examples(tmp_path, four, five),))
    assert found_in(four, config) is None
    assert found_in(five, config) is not None


def test_a_run_of_word_bytes_longer_than_a_block(tmp_path: Path) -> None:
    decontaminator = Decontaminator(DecontaminationConfig((write_examples(tmp_path, QUESTION),)))
    text = b"z" * 700_000 + b" " + QUESTION.encode() + b" " + b"z" * 700_000
    assert decontaminator.find_batch([text], [np.array([0, 600_000, 701_000, len(text)])])[0][1:] != [None, None]
    assert decontaminator.find_batch([b"z" * 700_000], [np.array([0, 700_000])]) == [[None]]


def test_files_without_pieces_and_half_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "\\ud800 b c d e f g h i"}\n')
    decontaminator = Decontaminator(DecontaminationConfig((str(path),)))
    assert decontaminator.find_batch([b""], [np.array([0])]) == [[]]
    assert decontaminator.find_batch([], []) == []


def test_pieces_are_dropped_counted_and_written_down(tmp_path: Path) -> None:
    decontaminator = Decontaminator(DecontaminationConfig((write_examples(tmp_path, QUESTION),)))
    text = f"def f():\n    pass\n# {QUESTION}\n"
    contents = [text.encode(), text.encode("utf-16"), b"clean"]
    sources = [
        SourceFile("o/r", f"/{i}.py", content, "Python", (), "unknown", f"{i:040}", encoding)
        for i, (content, encoding) in enumerate(zip(contents, ("UTF-8", "UTF-16", "UTF-8"), strict=True))
    ]
    files = [TextFile(source, source.content.decode(source.encoding)) for source in sources]
    offsets = [np.array([0, 18, len(text)]), np.array([0, 18, len(text)]), np.array([0, 5])]
    counts = FilterCounts()
    with DroppedLog(tmp_path, 0) as log:
        kept = drop_contaminated(decontaminator, files, offsets, counts, log)
    assert [mask.tolist() for mask in kept] == [[True, False], [True, False], [True]]
    size = len(text) - 18
    assert counts.to_plain()["contaminated"] == {"questions.jsonl": {"files": 2, "bytes": 2 * size}}
    detail = f"questions.jsonl: {QUESTION[:-1]}"
    assert list(read_dropped(tmp_path)) == [("o/r", f"/{i}.py", f"{i:040}", "contaminated", size, detail) for i in range(2)]
    assert [mask.tolist() for mask in drop_contaminated(None, files, offsets, counts)] == [[True, True], [True, True], [True]]


@pytest.mark.parametrize(
    ("name", "value"),
    [("ngram_words", 1), ("min_words", 0), ("min_words", 14), ("min_distinct_words", 9), ("max_examples", 0)],
)
def test_values_that_make_no_sense_are_refused(name: str, value: int) -> None:
    with pytest.raises(MoseError, match=f"decontamination.{name}: is {value}, expected"):
        DecontaminationConfig(**{name: value})  # type: ignore[arg-type]
