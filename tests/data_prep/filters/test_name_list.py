"""Lists of names: the same rules for comments, case, byte-order marks, quotes and patterns, whoever reads them."""

from pathlib import Path

import pytest

from data_prep.filters.name_list import Entry, NameList, check_entry, near_matches, read_entries, unmatched
from mose.errors import MoseError


def test_comments_marks_blanks_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b'\xef\xbb\xbfproj#2\r\n\r\n# why\n  Other # asked for\n"my project" # blanks\n"#odd"\n')
    found = read_entries(path)
    assert [(entry.line, entry.text) for entry in found] == [(1, "proj#2"), (4, "Other"), (5, "my project"), (6, "#odd")]
    for entry in found:
        check_entry(str(path), entry)


@pytest.mark.parametrize(
    ("entry", "yes", "no"),
    [
        ("proj#2", ("proj#2", "PROJ#2"), ("proj", "proj#3")),
        ("proj", ("proj", "Proj#2"), ("project", "a/proj")),
        ("owner/*", ("owner/a", "OWNER/b#2"), ("owners/a", "owner")),
        ("caf\u00e9", ("cafe\u0301", "CAF\u00c9"), ("cafe",)),
        ("a?c", ("abc",), ("ac", "abbc")),
        ("[red]", ("[RED]",), ("r", "red")),
    ],
)
def test_what_an_entry_matches(entry: str, yes: tuple[str, ...], no: tuple[str, ...]) -> None:
    names = NameList.of([entry])
    assert [name for name in (*yes, *no) if name in names] == list(yes)
    assert unmatched([entry], yes) == []
    assert unmatched([entry], no) == [entry]


def test_near_matches_name_the_project_first() -> None:
    assert near_matches("proj#2", ["project", "proj", "unlike"]) == ["proj", "project"]
    assert near_matches("owner/Name", ["other/thing", "Name", "owner/named"]) == ["Name", "owner/named"]


def test_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a/b\n", "utf-16")
    with pytest.raises(MoseError, match=r"list.txt: not a readable text file: it is UTF-16, expected UTF-8"):
        read_entries(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("github.com/owner/name", "is a URL or an address"),
        ("git@github.com:owner/name.git", "is a URL or an address"),
        ("owner/name.git", "is a URL or an address"),
        ("owner/name,", "holds punctuation of another format"),
        ('["owner/name"]', "holds punctuation of another format"),
        ('"owner/name","x"', "holds punctuation of another format"),
        ("'owner/name'", "holds punctuation of another format"),
        ("/owner/name", "holds punctuation of another format"),
        ("owner/", "holds punctuation of another format"),
        ("o\0w\0n\0", "holds characters that cannot be seen"),
        ("owner/name\u200b", "holds characters that cannot be seen"),
    ],
)
def test_what_can_name_no_repository_is_refused_unless_quoted(tmp_path: Path, line: str, wrong: str) -> None:
    (tmp_path / "list.txt").write_text(f"a/b\n{line}\n", "utf-8")
    *_, entry = read_entries(tmp_path / "list.txt")
    with pytest.raises(MoseError, match=rf"list\.txt: line 2: .* {wrong}"):
        check_entry(str(tmp_path / "list.txt"), entry)
    check_entry("list", Entry(2, line, is_quoted=True))


@pytest.mark.parametrize(
    "line", ["owner/name", "bare.git", "a.b/c.d", "owner/*", "[red]", "pypi/zope.interface", "@scope/name", "caf\u00e9"]
)
def test_ordinary_names_are_taken(line: str) -> None:
    check_entry("list", Entry(1, line))
