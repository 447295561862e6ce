"""The source that reads plain folders: one folder as one repository, or each child of a folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.sources.file_kinds import found_file
from data_prep.sources.repositories import READ_LIMIT_BYTES, RepositoryRef, SourceFile, SourceKind
from mose.errors import MoseError

KIND = "directory"
VERSION_CONTROL = frozenset({".git", ".hg", ".svn"})


def list_children(folder: str) -> list[RepositoryRef]:
    """Each child folder of `folder` as a repository; hidden folders are skipped.

    Raises:
        MoseError: `folder` does not exist, is not a folder or cannot be read.
    """
    children = [Path(entry.path) for entry in scan(Path(folder)) if entry.is_dir() and not entry.name.startswith(".")]
    return [RepositoryRef(name=printable(child.name), kind=KIND, location=str(child)) for child in children]


def list_one(folder: str) -> list[RepositoryRef]:
    """`folder` itself as a repository, under its own name.

    Raises:
        MoseError: `folder` does not exist, is not a folder or cannot be read.
    """
    scan(Path(folder))
    return [RepositoryRef(name=printable(Path(folder).resolve().name), kind=KIND, location=folder)]


def read(ref: RepositoryRef, wanted: Callable[[str], bool]) -> Iterator[SourceFile]:
    """The repository's files in path order, without symbolic links and version-control folders.

    Raises:
        MoseError: a folder or a file cannot be read.
    """
    root = Path(ref.location)
    # Sort by the printable name, because that is the path that all later steps see.
    found = {printable(path.relative_to(root).as_posix()): path for path in _walk(root)}
    for name in sorted(found):
        if wanted(name):
            yield found_file(ref.name, name, read_content(found[name]))


def read_content(path: Path) -> bytes:
    """A file's bytes, at most `READ_LIMIT_BYTES` + 1: the extra byte lets a filter see that the file is too large.

    Raises:
        MoseError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(READ_LIMIT_BYTES + 1)
    except OSError as error:
        raise MoseError(f"{path}: file cannot be read: {error.strerror}; expected one that this user may read") from None


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name.

    Raises:
        MoseError: the folder does not exist, is not a folder or cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise MoseError(f"{folder}: folder cannot be read: {error.strerror}; expected one that this user may read") from None


def printable(name: str) -> str:
    """A file name as text that UTF-8 can encode; bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


def _walk(root: Path) -> Iterator[Path]:
    folders = [root]
    while folders:
        for entry in scan(folders.pop()):
            if entry.is_dir(follow_symlinks=False) and entry.name not in VERSION_CONTROL:
                folders.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


CHILD_FOLDERS = SourceKind(KIND, lambda folder, _: list_children(folder), lambda ref, wanted, _: read(ref, wanted))
FOLDER = SourceKind(KIND, lambda folder, _: list_one(folder), lambda ref, wanted, _: read(ref, wanted))
