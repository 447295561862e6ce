"""Each filter on a file that it drops and on one next to it that it keeps, and the counts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.filters.config import FiltersConfig
from data_prep.filters.dropped_log import DroppedLog
from data_prep.filters.filters import (
    FILTERS,
    REASONS,
    FilterCounts,
    decode,
    filter_repository,
    has_few_alphanumerics,
    has_long_line,
    has_long_lines,
)
from data_prep.sources.repositories import SourceFile, TextFile, content_sha1
from data_prep.tools.dropped import read_dropped
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
        ("missing", source(b"", problem="missing"), source(b"x = 1")),
        ("missing", source(b"", problem="missing", is_vendored=True, licence_type="?"), source(b"x = 1")),
        ("too_large", source(b"x" * (CONFIG.max_bytes + 1)), source(b"x\n" * (CONFIG.max_bytes // 2))),
        ("binary", source(b"abc\0def"), source(b"abc def")),
        ("binary", source(b"\x01" * 3 + b"a" * 97), source(b"\x01" * 2 + b"a" * 98)),
        ("binary", source(b"x\n" * 9000 + b"\0"), source(b"x\n" * 9000 + b"\x01")),
        ("undecodable", source(b"caf\xe9"), source("café".encode())),
        ("undecodable", source(b"abc", encoding="no-such"), source(b"abc", encoding="ascii")),
        ("long_line", source(b"\n" * 9999 + b"x" * 100_001), source(b"\n" * 9999 + b"x" * 100_000)),
        ("long_line", source(b"\n" * 9999 + "é".encode() * 100_001), source(b"\n" * 9999 + "é".encode() * 100_000)),
        ("long_mean_line", source(b"x" * 1001), source(b"x" * 1000)),
        ("long_mean_line", source(b"x" * 5000 + b"\n" * 4), source(b"x" * 4000 + b"\n" * 4)),
        ("long_mean_line", source("é".encode() * 1001), source("é".encode() * 1000)),
        ("low_alphanumeric", source(b"a" * 24 + b"-" * 76), source(b"a" * 25 + b"-" * 75)),
        ("low_alphanumeric", source(b"-" * 76 + b"a" * 24), source(b"-" * 75 + b"a" * 25)),
        ("low_alphanumeric", source(("-" * 70 + "é" * 11).encode()), source(("-" * 66 + "é" * 11).encode())),
    ],
)
def test_a_filter_drops_what_it_is_for_and_nothing_next_to_it(reason: str, dropped: SourceFile, kept: SourceFile) -> None:
    assert outcomes([dropped]) == {reason: 1}
    assert outcomes([kept]) == {"kept": 1}


def test_the_registry_declares_each_reason_once_and_every_field_of_the_config() -> None:
    assert len(set(REASONS)) == len(REASONS) == len(FILTERS) + 2
    declared = [name for entry in FILTERS for name in entry.config_fields]
    steps = ["drop_duplicates", "secrets", "personal_data", "language_weights"]
    assert sorted([*declared, *steps]) == sorted(item.name for item in dataclasses.fields(FiltersConfig))


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


@pytest.mark.parametrize(
    ("allowed", "denied", "licences", "is_kept"),
    [
        ((), (), ("GPL-3.0-only",), True),
        (("MIT", "BSD-*"), (), ("MIT", "BSD-3-Clause"), True),
        (("MIT", "BSD-*"), (), ("MIT", "GPL-3.0-only"), False),
        (("mit",), (), ("MIT",), True),
        (("MIT",), (), (), True),
        (("MIT",), (), ("MIT-0",), False),
        ((), ("GPL-*", "AGPL-*"), ("GPL-2.0-or-later", "MIT"), False),
        ((), ("GPL-*", "AGPL-*"), ("LGPL-2.1-only",), True),
        (("*",), ("MIT",), ("MIT",), False),
    ],
)
def test_licences_by_name(allowed: tuple[str, ...], denied: tuple[str, ...], licences: tuple[str, ...], is_kept: bool) -> None:
    config = FiltersConfig(allowed_licences=allowed, denied_licences=denied)
    assert outcomes([source(b"x = 1", licences=licences)], config) == {"kept" if is_kept else "licence_name": 1}


def test_opted_out_repositories_and_blobs_are_dropped_whatever_else_they_are(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"gone/entirely\n{content_sha1(b'x = 1')}\n")
    config = FiltersConfig(opt_out=(str(tmp_path / "list.txt"),))
    files = [source(b"x = 1"), source(b"x = 2"), source(b"", repository="Gone/Entirely"), source(b"x = 3", is_vendored=True)]
    assert outcomes(files, config) == {"opt_out": 2, "kept": 1, "vendored": 1}


def test_a_problem_that_no_filter_knows_is_counted_and_merged() -> None:
    counts = FilterCounts()
    list(filter_repository([source(b"", problem="hit_by_lightning"), source(b"x")], CONFIG, counts))
    merged = FilterCounts.merge([counts.to_plain(), counts.to_plain(), FilterCounts().to_plain()])
    assert merged.reasons["hit_by_lightning"].files == 2
    assert merged.reasons["kept"].files == 2


def test_every_dropped_file_is_written_down_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("gone/entirely\n")
    config = FiltersConfig(opt_out=(str(tmp_path / "list.txt"),), denied_licences=("GPL-*",))
    files = [
        source(b"x = 1", "/kept.py"),
        source(b"x = 1", "/twin.py"),
        source(b"", "/lost.py", problem="missing"),
        source(b"y", "/mine.py", repository="gone/entirely"),
        source(b"y", "/gpl.py", licences=("MIT", "GPL-3.0-only")),
        source(b"y", "/closed.py", licence_type="non_permissive"),
        source(b"caf\xe9", "/latin.py"),
    ]
    counts = FilterCounts()
    with DroppedLog(tmp_path, 0) as log:
        kept = list(filter_repository(files, config, counts, log))
    lines = list(read_dropped(tmp_path))
    assert [file.source.path for file in kept] == ["/kept.py"]
    assert [(path, reason, size, detail) for _, path, _, reason, size, detail in lines] == [
        ("/twin.py", "duplicate_in_repository", 5, ""),
        ("/lost.py", "missing", 0, ""),
        ("/mine.py", "opt_out", 1, "repository"),
        ("/gpl.py", "licence_name", 1, "GPL-3.0-only"),
        ("/closed.py", "licence", 1, "non_permissive"),
        ("/latin.py", "undecodable", 4, "UTF-8"),
    ]
    assert [line[:3] for line in lines[:1]] == [("o/r", "/twin.py", content_sha1(b"x = 1"))]
    assert len(lines) == sum(tally.files for tally in counts.reasons.values()) - counts.reasons["kept"].files


@given(st.text(alphabet="ab1-_ é\n", max_size=200), st.integers(1, 30), st.integers(1, 30), st.floats(0, 1))
def test_quick_ways_give_what_the_definitions_give(text: str, longest: int, mean: int, share: float) -> None:
    config = FiltersConfig(max_line_length=longest, max_mean_line_length=mean, min_alphanumeric_share=share)
    file = TextFile(source(text.encode()), text)
    lines = text.split("\n")
    alphanumeric = sum(len(character.encode()) for character in text if character.isalnum())
    assert has_long_line(file, config) == (max(map(len, lines)) > longest)
    assert has_long_lines(file, config) == (len(text) > mean * len(lines))
    assert has_few_alphanumerics(file, config) == (alphanumeric < share * len(text.encode()))


@pytest.mark.parametrize("encoding", ["UTF-8", "ascii", "ISO-8859-1", "UTF-16", "utf-8-sig"])
def test_the_utf8_of_a_text_is_what_its_text_encodes_to(encoding: str) -> None:
    text = "x = 1" if encoding == "ascii" else "naïve = 1"
    (file,) = filter_repository([source(text.encode(encoding), encoding=encoding)], CONFIG, FilterCounts())
    assert (file.text, file.utf8) == (text, text.encode())


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
    counts.count_contaminated("questions.jsonl", 30)
    counts.count_contaminated("questions.jsonl", 12)
    plain = counts.to_plain()
    assert plain["contaminated"] == {"questions.jsonl": {"files": 2, "bytes": 42}}
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
        part.count_contaminated("questions.jsonl", i)
        whole.count_contaminated("questions.jsonl", i)
    assert FilterCounts.merge(part.to_plain() for part in parts).to_plain() == whole.to_plain()
    assert FilterCounts.merge([]).to_plain()["eligible_bytes_kept_share"] is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("licence_types", ()),
        ("max_bytes", 0),
        ("max_bytes", 1 << 30),
        ("max_line_length", 0),
        ("max_mean_line_length", 0),
        ("min_alphanumeric_share", 1.5),
        ("denied_licences", ("GPL-*", " ")),
        ("opt_out", ("",)),
    ],
)
def test_values_that_make_no_sense_are_refused(name: str, value: Any) -> None:
    with pytest.raises(MoseError, match=name):
        FiltersConfig(**{name: value})
