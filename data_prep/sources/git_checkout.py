"""The source that reads git work trees: the files of HEAD, without uncommitted changes."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from data_prep.sources.directory import printable
from data_prep.sources.file_kinds import found_file
from data_prep.sources.repositories import READ_LIMIT_BYTES, RepositoryRef, SourceFile, SourceKind
from mose.errors import MoseError

KIND = "git"
REGULAR_FILES = (b"100644", b"100755")
"""Modes in git trees; symbolic links (120000) and submodules (160000) are skipped."""


def list_one(folder: str) -> list[RepositoryRef]:
    """The git work tree `folder` as a repository, named after the folder.

    Raises:
        MoseError: `folder` is not the top of a git work tree, or has no commit.
    """
    # In a subfolder of a work tree, git would list the whole enclosing project.
    if prefix := _git(folder, "rev-parse", "--show-prefix").decode("utf-8", "replace").strip():
        raise MoseError(f"{folder}: git_checkouts: is the folder {prefix} of a git work tree; expected the top of one")
    _git(folder, "rev-parse", "--verify", "HEAD")
    return [RepositoryRef(name=printable(Path(folder).resolve().name), kind=KIND, location=folder)]


def read(ref: RepositoryRef, wanted: Callable[[str], bool]) -> Iterator[SourceFile]:
    """The files of HEAD in path order.

    Raises:
        MoseError: git cannot read the tree or one of its files.
    """
    blobs = {name: blob for name, blob in _tree(ref.location) if wanted(name)}
    # One `cat-file --batch` process serves all files: starting git once per file would dominate the run time.
    process = subprocess.Popen(
        ["git", "-C", ref.location, "cat-file", "--batch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    if process.stdin is None or process.stdout is None:
        raise MoseError(f"{ref.location}: git cat-file has no pipes")
    try:
        for name in sorted(blobs):
            process.stdin.write(blobs[name] + b"\n")
            process.stdin.flush()
            yield found_file(ref.name, name, _blob(process.stdout, f"{ref.location}: {name}"))
    except BrokenPipeError:
        raise MoseError(f"{ref.location}: git cat-file ended early; expected a work tree that `git fsck` accepts") from None
    finally:
        process.stdout.close()
        process.communicate()


def _tree(folder: str) -> list[tuple[str, bytes]]:
    entries = []
    for line in _git(folder, "ls-tree", "-r", "-z", "--full-tree", "HEAD").split(b"\0"):
        facts, _, name = line.partition(b"\t")
        mode, _, rest = facts.partition(b" ")
        if mode in REGULAR_FILES:
            entries.append((name.decode("utf-8", "replace"), rest.split(b" ")[1]))
    return entries


def _blob(stream: IO[bytes], place: str) -> bytes:
    header = stream.readline().split()
    if len(header) != 3 or not header[2].isdigit():
        raise MoseError(f"{place}: git has no content of this file; expected a complete clone")
    size = int(header[2])
    content = stream.read(min(size, READ_LIMIT_BYTES + 1))
    # Read on past the limit, and past the line feed that ends each body, so that the next header follows.
    rest = size + 1 - len(content)
    while rest > 0 and (block := stream.read(min(rest, 1 << 20))):
        rest -= len(block)
    if rest:
        raise MoseError(f"{place}: git ended in the middle of this file; expected a work tree that `git fsck` accepts")
    return content


def _git(folder: str, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, check=True)
    except FileNotFoundError:
        raise MoseError(f"{folder}: git_checkouts: the program git is not installed; use repositories instead") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["git failed"]
        raise MoseError(f"{folder}: git_checkouts: {lines[0]}; expected a git work tree with a commit") from None
    return done.stdout


GIT_CHECKOUT = SourceKind(KIND, lambda folder, _: list_one(folder), lambda ref, wanted, _: read(ref, wanted))
