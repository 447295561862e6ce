"""Git work trees: the files of HEAD, not of the work tree; links, submodules, and what is refused."""

import os
import subprocess
from pathlib import Path

import pytest

from data_prep.sources import git_checkout
from data_prep.sources.repositories import SourceFile
from mose.errors import MoseError

IDENTITY = {
    **{f"GIT_{role}_{what}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, env={**os.environ, **IDENTITY})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "src" / "b.py").write_bytes(b"print('b')\n")
    (folder / "a name.txt").write_bytes(b"\x00\xff binary\n\n")
    (folder / "empty").write_bytes(b"")
    (folder / "run.sh").write_bytes(b"#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link.py").symlink_to("src/b.py")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def read(folder: Path) -> list[SourceFile]:
    return list(git_checkout.read(git_checkout.list_one(str(folder))[0], lambda path: True))


def test_the_files_of_the_commit_are_read_whole(checkout: Path) -> None:
    assert {file.path: file.content for file in read(checkout)} == {
        "/a name.txt": b"\x00\xff binary\n\n",
        "/empty": b"",
        "/run.sh": b"#!/bin/sh\n",
        "/src/b.py": b"print('b')\n",
    }
    assert [file.path for file in read(checkout)] == ["/a name.txt", "/empty", "/run.sh", "/src/b.py"]
    assert {file.repository for file in read(checkout)} == {"project"}


def test_changes_that_are_not_committed_are_not_read(checkout: Path) -> None:
    before = read(checkout)
    (checkout / "src" / "b.py").write_bytes(b"changed")
    (checkout / "new.py").write_bytes(b"new")
    git(checkout, "add", "new.py")
    assert read(checkout) == before


def test_a_submodule_is_left_out(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "update-index", "--add", "--cacheinfo", "160000," + "1" * 40 + ",module")
    git(checkout, "commit", "-q", "-m", "second")
    assert "/module" not in [file.path for file in read(checkout)]


def test_reading_may_stop_early(checkout: Path) -> None:
    files = git_checkout.read(git_checkout.list_one(str(checkout))[0], lambda path: True)
    assert next(files).path == "/a name.txt"
    files.close()  # type: ignore[attr-defined]


def test_a_huge_file_does_not_shift_the_next_one(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_checkout, "READ_LIMIT_BYTES", 4)
    assert [file.content for file in read(checkout)] == [b"\x00\xff bi", b"", b"#!/bi", b"print"]


def test_what_is_not_a_work_tree_or_has_no_commit_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(MoseError, match=r"plain: git_checkouts: .*expected a git work tree with a commit"):
        git_checkout.list_one(str(plain))
    git(plain, "init", "-q")
    with pytest.raises(MoseError, match=r"plain: git_checkouts: .*expected a git work tree with a commit"):
        git_checkout.list_one(str(plain))


def test_a_folder_inside_a_work_tree_is_refused(checkout: Path) -> None:
    with pytest.raises(MoseError, match="git_checkouts: is the folder src/ of a git work tree"):
        git_checkout.list_one(str(checkout / "src"))


def test_a_lost_object_is_named(checkout: Path) -> None:
    blob = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD:src/b.py"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (checkout / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(MoseError, match=r"src/b\.py: git has no content"):
        read(checkout)


def test_no_git_on_the_machine_is_said(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MoseError, match="git is not installed"):
        git_checkout.list_one(str(checkout))
