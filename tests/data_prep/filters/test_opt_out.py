"""Opt-out lists: what a line may be, what it takes out, and which line is wrong."""

import hashlib
from pathlib import Path

import pytest
from upath import UPath

from data_prep.filters.opt_out import load_opt_out
from mose.errors import MoseError

BLOB = hashlib.sha1(b"x = 1").hexdigest()


def write_list(folder: Path, text: str | bytes, name: str = "opt_out.txt") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_repositories_and_blobs_of_several_lists(tmp_path: Path) -> None:
    first = write_list(tmp_path, f"# asked for in March\nowner/name\r\n\n  {BLOB.upper()}  # one file\n", "a.txt")
    second = write_list(tmp_path, "other/name", "b.txt")
    found = load_opt_out((first, second))
    assert found.reason("owner/name", "0" * 40) == "repository"
    assert found.reason("other/name", BLOB) == "repository"
    assert found.reason("third/name", BLOB) == "blob"
    assert found.reason("third/name", "0" * 40) == ""
    assert found.reason("third/name", "") == ""


def test_a_name_means_the_repository_in_any_case_and_its_namesakes_but_no_other(tmp_path: Path) -> None:
    found = load_opt_out((write_list(tmp_path, "Owner/Name\nodd#name\n"),))
    for name in ("owner/name", "OWNER/NAME", "owner/name#2", "odd#name"):
        assert found.reason(name, BLOB) == "repository", name
    for name in ("owner/names", "owner", "name", "owner/name/x", "odd"):
        assert found.reason(name, BLOB) == "", name


def test_a_list_may_lie_behind_a_url() -> None:
    UPath("memory://opt-out/list.txt").write_text("owner/name\n")
    assert load_opt_out(("memory://opt-out/list.txt",)).reason("owner/name", BLOB) == "repository"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"a/b\nhttps://example.org/a/b\n", "line 2: 'https://example.org/a/b' is a URL"),
        (b"a/b c/d\n", "line 1: 'a/b c/d' holds more than one word"),
        (f"\n\n{BLOB[:-1]}\n".encode(), "line 3: .* is a hash of 39 digits"),
        (f"{BLOB}{BLOB}".encode(), "line 1: .* is a hash of 80 digits"),
        (b"a/b\n\ncaf\xe9\n", "line 3: is not UTF-8"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: bytes, told: str) -> None:
    path = write_list(tmp_path, text)
    with pytest.raises(MoseError, match=rf"opt_out\.txt: {told}.*; expected a repository name or a blob id") as error:
        load_opt_out((path,))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["absent.txt", "."])
def test_a_list_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MoseError, match="cannot be read: .*; expected a list"):
        load_opt_out((str(tmp_path / name),))
