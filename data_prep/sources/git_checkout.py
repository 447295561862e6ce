"""The source that reads git work trees: the files of HEAD, without uncommitted changes."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO, NamedTuple

from data_prep.sources.directory import named_place
from data_prep.sources.file_kinds import found_file, unread_file
from data_prep.sources.git_objects import GitObjects, find_objects, origin_of
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

KIND = "git"
REGULAR_FILES = (b"100644", b"100755")
"""Modes in git trees; symbolic links (120000) and submodules (160000) are skipped."""
# A tree whose entries are all one tree of equal entries, nested ten deep, lists 10**10 files from a few kilobytes of objects.
MOST_FILES = 2_000_000
_MOST_NAME_BYTES = 1 << 16
_READ_BYTES = 1 << 20
_SHA1_DIGITS = 40


def list_one(folder: str) -> list[RepositoryRef]:
    """The git work tree `folder` as a repository, named after the folder or by an entry `NAME=FOLDER`.

    Raises:
        MoseError: `folder` is not the top of a git work tree, or has no commit.
    """
    name, folder = named_place(folder)
    objects = find_objects(folder)
    with objects.run("cat-file", "-t", f"{objects.commit}^{{tree}}") as process:
        found = process.communicate()[0].strip()
    if found != b"tree":
        raise MoseError(
            f"{folder}: git_checkouts: has no commit {objects.commit}, which is HEAD; expected a git work tree with a commit"
        )
    return [RepositoryRef(name=name, kind=KIND, location=folder)]


def read(ref: RepositoryRef, wanted: Callable[[str], bool]) -> Iterator[SourceFile]:
    """The files of HEAD in path order; of two whose names are equal after decoding, the second is named NAME#2.

    Raises:
        MoseError: git cannot read the tree, or lacks the content of a file.
    """
    objects = find_objects(ref.location)
    origin = origin_of(ref.location)
    entries = sorted(entry for entry in _tree(objects, wanted) if wanted(entry.name))
    # Before any content is read, so that an incomplete clone is left out as a whole.
    for entry in entries:
        if entry.size < 0:
            raise MoseError(f"{ref.location}: {entry.name}: git has no content of this file; expected a complete clone")
    # One `cat-file --batch` process serves all files: starting git once per file would dominate the run time.
    with objects.run("cat-file", "--batch") as process:
        if process.stdin is None or process.stdout is None:
            raise MoseError(f"{ref.location}: git cat-file has no pipes")
        try:
            for name, entry in zip(distinct(entry.name for entry in entries), entries, strict=True):
                if is_full(wanted):
                    yield unread_file(ref.name, name, entry.size, OVER_REPOSITORY_LIMIT)
                    continue
                process.stdin.write(entry.blob + b"\n")
                process.stdin.flush()
                content = _blob(process.stdout, f"{ref.location}: {entry.name}")
                file = replace(found_file(ref.name, entry.name, content), origin=origin)
                if len(file.content) > READ_LIMIT_BYTES:
                    file = replace(file, size=entry.size)
                yield file if name == entry.name else replace(file, path="/" + name)
        except BrokenPipeError:
            raise MoseError(f"{ref.location}: git cat-file ended early; expected a work tree that `git fsck` accepts") from None


class _Entry(NamedTuple):
    """A regular file of HEAD; sorts by its decoded name."""

    name: str
    raw: bytes
    blob: bytes
    size: int
    """Bytes; -1 if git has no content of it."""


def _tree(objects: GitObjects, wanted: Callable[[str], bool]) -> Iterator[_Entry]:
    """Each regular file of HEAD; links and submodules are passed over."""
    with objects.run("ls-tree", "-r", "-l", "-z", "--full-tree", objects.commit) as process:
        if process.stdout is None:
            raise MoseError(f"{objects.folder}: git ls-tree has no pipes")
        for number, line in enumerate(_entries(process.stdout, objects.folder)):
            if number == MOST_FILES:
                raise MoseError(f"{objects.folder}: git_checkouts: HEAD has more than {MOST_FILES:,} files, expected fewer")
            facts, _, name = line.partition(b"\t")
            mode, _, rest = facts.partition(b" ")
            if mode not in REGULAR_FILES:
                pass_over(wanted)
                continue
            _, blob, size = rest.split()
            yield _Entry(name.decode("utf-8", "replace"), name, blob, int(size) if size.isdigit() else -1)
        if process.wait():
            raise MoseError(f"{objects.folder}: git_checkouts: cannot list HEAD; expected a work tree that `git fsck` accepts")


def _entries(stream: IO[bytes], folder: str) -> Iterator[bytes]:
    """The parts of a stream that end with a zero byte."""
    rest = b""
    while block := stream.read1(_READ_BYTES):  # type: ignore[attr-defined]
        *entries, rest = (rest + block).split(b"\0")
        yield from entries
        if len(rest) > _MOST_NAME_BYTES:
            raise MoseError(f"{folder}: git_checkouts: a path of HEAD has more than {_MOST_NAME_BYTES} bytes, expected fewer")


def _blob(stream: IO[bytes], place: str) -> bytes:
    header = stream.readline().split()
    if len(header) != 3 or header[1] != b"blob" or not header[2].isdigit():
        raise MoseError(f"{place}: git has no content of this file; expected a complete clone")
    size = int(header[2])
    content = stream.read(min(size, READ_LIMIT_BYTES + 1))
    # `cat-file` itself does not compare a content with its name. A larger one is not held, and is dropped as too large.
    if len(content) == size and not _is_content_of(header[0], content):
        raise MoseError(f"{place}: the content is not the one that its hash names; expected a work tree that `git fsck` accepts")
    # Read on past the limit, and past the line feed that ends each body, so that the next header follows.
    rest = size + 1 - len(content)
    while rest > 0 and (block := stream.read(min(rest, _READ_BYTES))):
        rest -= len(block)
    if rest:
        raise MoseError(f"{place}: git ended in the middle of this file; expected a work tree that `git fsck` accepts")
    return content


def _is_content_of(blob: bytes, content: bytes) -> bool:
    name = "sha1" if len(blob) == _SHA1_DIGITS else "sha256"
    digest = hashlib.new(name, b"blob %d\0" % len(content), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest().encode() == blob


GIT_CHECKOUT = SourceKind(
    KIND,
    lambda folder, _: list_one(folder),
    lambda ref, wanted, _: read(ref, wanted),
    state=lambda ref: f"HEAD {find_objects(ref.location).commit}",
)
