"""Plain folders as repositories: order, links, odd names, unreadable folders and files, very large files."""

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from data_prep.sources import directory
from data_prep.sources.file_kinds import is_generated, is_vendored, language_of
from data_prep.sources.repositories import READ_LIMIT_BYTES, Selection
from mose.errors import MoseError


def read(folder: Path) -> list[Any]:
    return list(directory.read(directory.list_one(str(folder))[0], lambda path: True))


def test_files_come_in_path_order_with_what_their_path_tells(tmp_path: Path) -> None:
    (tmp_path / "vendor" / "x").mkdir(parents=True)
    (tmp_path / "vendor" / "x" / "z.c").write_bytes(b"int z;")
    (tmp_path / "b.py").write_bytes(b"# DO NOT EDIT\n")
    (tmp_path / "a-b.go").write_bytes(b"package a")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.rs").write_bytes(b"fn c() {}")
    files = read(tmp_path)
    assert [file.path for file in files] == ["/a-b.go", "/a/c.rs", "/b.py", "/vendor/x/z.c"]
    assert [file.language for file in files] == ["Go", "Rust", "Python", "C"]
    assert [file.is_generated for file in files] == [False, False, True, False]
    assert [file.is_vendored for file in files] == [False, False, False, True]
    assert files[0].blob_id == hashlib.sha1(b"package a").hexdigest()
    assert {file.licence_type for file in files} == {"unknown"}


def test_symbolic_links_are_not_followed_and_version_control_is_not_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.py").write_bytes(b"secret")
    repository = tmp_path / "repository"
    (repository / ".git").mkdir(parents=True)
    (repository / ".git" / "config").write_bytes(b"[core]")
    (repository / "own.py").write_bytes(b"own")
    (repository / "link.py").symlink_to(outside / "secret.py")
    (repository / "folder").symlink_to(outside)
    (repository / "loop").symlink_to(repository)
    assert [file.path for file in read(repository)] == ["/own.py"]


def test_a_file_name_that_is_not_utf8_becomes_text_that_is(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.py")).write_bytes(b"x")
    (path,) = [file.path for file in read(tmp_path)]
    assert path.encode("utf-8").decode("utf-8") == "/caf\ufffd.py"


def test_a_special_file_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "self").symlink_to("self")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    assert read(tmp_path) == []
    selection = Selection()
    assert list(directory.read(directory.list_one(str(tmp_path))[0], selection)) == []
    assert selection.passed_over == 4


def test_the_git_file_of_a_linked_work_tree_is_not_read(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: /home/someone/project/.git/worktrees/x\n")
    (tmp_path / "a.py").write_bytes(b"a")
    assert [file.path for file in read(tmp_path)] == ["/a.py"]


def test_child_folders_behind_links_are_read_once(tmp_path: Path) -> None:
    folder, outside = tmp_path / "repositories", tmp_path / "outside"
    for name in ("one", "two", ".hidden"):
        (folder / name).mkdir(parents=True)
    outside.mkdir()
    for name, target in (("a", "one"), ("b", ".."), ("c", "c"), ("d", "nowhere"), ("e", outside), ("f", outside)):
        (folder / name).symlink_to(target)
    (folder / "loose.py").write_bytes(b"x")
    assert [ref.name for ref in directory.list_children(str(folder))] == ["e", "one", "two"]
    remark = directory.remark_on_children(str(folder))
    assert remark == f"directories: {folder}: not read, because not a folder of its own: 'a', 'b', 'c' and 3 more"
    assert directory.remark_on_children(str(outside)) == ""


def test_an_unreadable_folder_inside_a_repository_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def refuse(folder: Any) -> Any:
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(MoseError, match=r"locked: folder cannot be read: Permission denied"):
        read(tmp_path)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked.py").write_bytes(b"x")

    def refuse(self: Path, *arguments: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MoseError, match=r"locked\.py: file cannot be read: Permission denied"):
        read(tmp_path)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(MoseError, match="file: folder cannot be read: Not a directory"):
        directory.list_children(str(tmp_path / "file"))


def test_no_more_of_a_huge_file_is_read_than_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "disk.img").open("wb") as file:
        file.truncate(READ_LIMIT_BYTES + 4096)
    assert len(read(tmp_path)[0].content) == READ_LIMIT_BYTES + 1


def test_kinds_of_files() -> None:
    assert language_of("src/Main.JAVA") == "Java"
    assert language_of("Dockerfile") == "Dockerfile"
    assert language_of("data.qqq") == "Unknown"
    assert is_vendored("a/node_modules/b.js")
    assert not is_vendored("src/vendor.py")
    assert is_generated(b"// Code generated by x. DO NOT EDIT.\n")
    assert not is_generated(b"x" * 1000 + b"@generated")
