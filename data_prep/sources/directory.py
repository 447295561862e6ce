"""The source that reads plain folders: one folder as one repository, or each child of a folder."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from data_prep.sources.file_kinds import found_file, unread_file
from data_prep.sources.repositories import (
    OVER_REPOSITORY_LIMIT,
    READ_LIMIT_BYTES,
    RepositoryRef,
    SourceFile,
    SourceKind,
    distinct,
    is_full,
    pass_over,
)
from mose.errors import MoseError

KIND = "directory"
VERSION_CONTROL = frozenset({".git", ".hg", ".svn"})
"""Names of what version control keeps: folders, or in linked work trees and submodules a file with a path of the machine."""
_NAMED = 3


def list_children(folder: str) -> list[RepositoryRef]:
    """Each child folder of `folder` as a repository; hidden ones are skipped, and links to what is read anyway.

    Raises:
        MoseError: `folder` does not exist, is not a folder or cannot be read.
    """
    return [RepositoryRef(name=printable(child.name), kind=KIND, location=str(child)) for child in _children(Path(folder))[0]]


def remark_on_children(folder: str) -> str:
    """What in `folder` is no repository and not read, in one line without a line end; empty if there is nothing of the kind.

    Raises:
        MoseError: see `list_children`.
    """
    names = [repr(printable(name)) for name in _children(Path(folder))[1]]
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"directories: {folder}: not read, because not a folder of its own: {', '.join(names[:_NAMED])}{more}"


def _children(folder: Path) -> tuple[list[Path], list[str]]:
    """The child folders that are repositories, and the names of what is not read, hidden entries apart."""
    entries = [entry for entry in scan(folder) if not entry.name.startswith(".")]
    own, children, passed = folder.resolve(), list[Path](), list[str]()
    taken = {own / entry.name for entry in entries if not entry.is_symlink() and _leads_to_folder(entry)}
    for entry in entries:
        path = Path(entry.path)
        target = path.resolve() if entry.is_symlink() and _leads_to_folder(entry) else None
        # A link to another child, or to a folder around this one, would give the same files twice.
        if not _leads_to_folder(entry) or (target is not None and (target in taken or own.is_relative_to(target))):
            passed.append(entry.name)
            continue
        children.append(path)
        if target is not None:
            taken.add(target)
    return children, passed


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link in a circle, or into a folder that this user may not enter.
        return False


def named_place(entry: str) -> tuple[str, str]:
    """Name and folder of an entry `NAME=FOLDER`, or of a folder alone, which is named after itself.

    A folder whose own path holds `=` is taken as it is.
    """
    name, equals, place = entry.partition("=")
    if not equals or not name or not place or Path(entry).exists():
        return printable(Path(entry).resolve().name), entry
    return name, place


def list_one(folder: str) -> list[RepositoryRef]:
    """`folder` itself as a repository, under its own name or that of an entry `NAME=FOLDER`.

    Raises:
        MoseError: `folder` does not exist, is not a folder or cannot be read.
    """
    name, place = named_place(folder)
    scan(Path(place))
    return [RepositoryRef(name=name, kind=KIND, location=place)]


def read(ref: RepositoryRef, wanted: Callable[[str], bool]) -> Iterator[SourceFile]:
    """The repository's files in path order, without symbolic links and version-control folders.

    Of two files whose names are equal once bytes outside UTF-8 are replaced, the second is named NAME#2.

    Raises:
        MoseError: a folder or a file cannot be read.
    """
    root = Path(ref.location)
    # Sort by the printable name, because that is the path that all later steps see.
    found = sorted((printable(path.relative_to(root).as_posix()), os.fsencode(path), path) for path in _walk(root, wanted))
    for name, (original, _, path) in zip(distinct(name for name, *_ in found), found, strict=True):
        if not wanted(original):
            continue
        if is_full(wanted):
            yield unread_file(ref.name, name, file_size(path), OVER_REPOSITORY_LIMIT)
            continue
        file = found_file(ref.name, original, read_content(path))
        if len(file.content) > READ_LIMIT_BYTES:
            file = replace(file, size=file_size(path))
        yield file if name == original else replace(file, path="/" + name)


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


def file_size(path: Path) -> int:
    """A file's size in bytes.

    Raises:
        MoseError: the file is gone.
    """
    try:
        return path.stat().st_size
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


def _walk(root: Path, wanted: Callable[[str], bool] = lambda path: True) -> Iterator[Path]:
    folders = [root]
    while folders:
        for entry in scan(folders.pop()):
            if entry.name in VERSION_CONTROL:
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path)
            else:
                pass_over(wanted)


def state_of(ref: RepositoryRef) -> str:
    """Number, size and times of a repository's files in words, with a hash of them all.

    Raises:
        MoseError: a folder cannot be read.
    """
    files, size, newest, digest = 0, 0, 0, hashlib.sha256()
    for path in sorted(_walk(Path(ref.location))):
        status = path.stat()
        files, size, newest = files + 1, size + status.st_size, max(newest, status.st_mtime_ns)
        digest.update(os.fsencode(path) + f"\0{status.st_size} {status.st_mtime_ns}\n".encode())
    when = datetime.fromtimestamp(newest // 10**9, timezone.utc).isoformat(timespec="seconds")
    return f"{files} files of {size:,} bytes, the newest of {when} ({digest.hexdigest()[:8]})"


CHILD_FOLDERS = SourceKind(
    KIND, lambda folder, _: list_children(folder), lambda ref, wanted, _: read(ref, wanted), state=state_of
)
FOLDER = SourceKind(KIND, lambda folder, _: list_one(folder), lambda ref, wanted, _: read(ref, wanted), state=state_of)
