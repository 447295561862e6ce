"""Each filter on a file that it drops and on one next to it that it keeps, and the counts."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.filters import REASONS, FilterCounts, FiltersConfig, decode, filter_repository
from data_prep.records import SourceFile, content_sha1
from mose.errors import MoseError

CONFIG = FiltersConfig()


def source(content: bytes, path: str = "/a.py", **more: Any) -> SourceFile:
    facts = {"repository": "o/r", "language": "Python", "licences": ("MIT",), "licence_type": "permissive", **more}
    return SourceFile(path=path, content=content, blob_id=content_sha1(content), **facts)


def outcomes(files: list[SourceFile], config: FiltersConfig = CONFIG) -> dict[str, int]:
    counts = FilterCounts()
    kept = list(filter_repository(files, config, counts))
    found = {name: tally.files for name, tally in counts.reasons.items() if tally.files}
    assert found.get("kept", 0) == len(kept)
    return found


@pytest.mark.parametrize(
    ("reason", "dropped", "kept"),
    [
        ("empty", source(b" \n\t\n"), source(b" x\n")),
        ("empty", source(b""), source(b"x")),
        ("vendored", source(b"x = 1", is_vendored=True), source(b"x = 1")),
        ("generated", source(b"x = 1", is_generated=True), source(b"x = 1")),
        ("licence", source(b"x = 1", licence_type="non_permissive"), source(b"x = 1", licence_type="no_license")),
        ("too_large", source(b"x" * (CONFIG.max_bytes + 1)), source(b"x\n" * (CONFIG.max_bytes // 2))),
        ("binary", source(b"abc\0def"), source(b"abc def")),
        ("binary", source(b"\x01" * 3 + b"a" * 97), source(b"\x01" * 2 + b"a" * 98)),
        ("undecodable", source(b"caf\xe9"), source("café".encode())),
        ("undecodable", source(b"abc", encoding="no-such"), source(b"abc", encoding="ascii")),
        ("long_line", source(b"x" * (CONFIG.max_line_length + 1)), source(b"x" * CONFIG.max_line_length + b"\ny")),
        ("low_alphanumeric", source(b"a" * 24 + b"-" * 76), source(b"a" * 25 + b"-" * 75)),
    ],
)
def test_a_filter_drops_what_it_is_for_and_nothing_next_to_it(reason: str, dropped: SourceFile, kept: SourceFile) -> None:
    assert outcomes([dropped]) == {reason: 1}
    assert outcomes([kept]) == {"kept": 1}


def test_duplicates_are_dropped_within_a_repository_only() -> None:
    twins = [source(b"x = 1", "/a.py"), source(b"x = 1", "/b.py")]
    assert outcomes(twins) == {"kept": 1, "duplicate_in_repository": 1}
    assert outcomes(twins, dataclasses.replace(CONFIG, drop_duplicates=False)) == {"kept": 2}
    counts = FilterCounts()
    for file in twins:
        list(filter_repository([file], CONFIG, counts))
    assert counts.reasons["kept"].files == 2


def test_a_switched_off_filter_keeps() -> None:
    config = FiltersConfig(drop_vendored=False, drop_generated=False)
    assert outcomes([source(b"x = 1", is_vendored=True), source(b"y = 1", is_generated=True)], config) == {"kept": 2}


def test_the_declared_encoding_decodes_and_utf16_is_not_binary() -> None:
    latin = source("naïve".encode("latin-1"), encoding="ISO-8859-1")
    wide = source("naïve code".encode("utf-16"), encoding="UTF-16")
    assert [file.text for file in filter_repository([latin, wide], CONFIG, FilterCounts())] == ["naïve", "naïve code"]


def test_a_byte_order_mark_stays_text() -> None:
    (file,) = filter_repository([source(b"\xef\xbb\xbfx = 1")], CONFIG, FilterCounts())
    assert file.text == "\ufeffx = 1"


def test_an_encoding_that_makes_lone_surrogates_is_undecodable() -> None:
    assert decode(b"+2AA-", "utf-7") is None
    assert decode(b"\\ud800", "unicode-escape") is None


@given(st.binary(max_size=300), st.sampled_from(["UTF-8", "ISO-8859-1", "UTF-16", "utf-7", "rot13", "a\0b", ""]))
def test_any_bytes_have_one_outcome_and_kept_text_is_what_utf8_can_write(content: bytes, encoding: str) -> None:
    counts = FilterCounts()
    kept = list(filter_repository([source(content, encoding=encoding)], CONFIG, counts))
    assert sum(tally.files for tally in counts.reasons.values()) == 1
    assert sum(tally.bytes for tally in counts.reasons.values()) == len(content)
    assert all(file.text == file.text.encode("utf-8").decode("utf-8") for file in kept)


def test_counts_tell_bytes_languages_licences_and_the_eligible() -> None:
    counts = FilterCounts()
    files = [
        source(b"x = 1", "/a.py"),
        source(b"ab\0", "/b.py"),
        source(b"int y;", "/c.c", language="C", licences=(), licence_type="no_license"),
        source(b"z = 22", "/d.py", is_vendored=True),
    ]
    list(filter_repository(files, CONFIG, counts))
    plain = counts.to_plain()
    assert plain["reasons"]["kept"] == {"files": 2, "bytes": 11}
    assert plain["reasons"]["binary"] == {"files": 1, "bytes": 3}
    assert set(plain["reasons"]) == {"kept", *REASONS}
    assert plain["eligible"] == {"files": 2, "bytes": 8}
    assert plain["eligible_kept"] == {"files": 1, "bytes": 5}
    assert plain["eligible_bytes_kept_share"] == 5 / 8
    assert plain["languages"] == {"Python": {"files": 1, "bytes": 5}, "C": {"files": 1, "bytes": 6}}
    assert plain["licences"] == {"MIT": {"files": 1, "bytes": 5}, "no_license": {"files": 1, "bytes": 6}}


def test_merged_counts_are_those_of_one_run() -> None:
    files = [source(bytes([65 + i]) * (i + 1), f"/{i}.py", language="ABC"[i % 3]) for i in range(10)]
    whole, parts = FilterCounts(), [FilterCounts() for _ in range(3)]
    list(filter_repository(files, CONFIG, whole))
    for i, part in enumerate(parts):
        list(filter_repository(files[i::3], CONFIG, part))
    assert FilterCounts.merge(part.to_plain() for part in parts).to_plain() == whole.to_plain()
    assert FilterCounts.merge([]).to_plain()["eligible_bytes_kept_share"] is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("licence_types", ()), ("max_bytes", 0), ("max_bytes", 1 << 30), ("max_line_length", 0), ("min_alphanumeric_share", 1.5)],
)
def test_values_that_make_no_sense_are_refused(name: str, value: Any) -> None:
    with pytest.raises(MoseError, match=name):
        FiltersConfig(**{name: value})
