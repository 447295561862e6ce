"""Reads the objects of a git repository without running anything that the repository configures.

A checkout from elsewhere may hold a config, hooks and attributes, and git runs the programs that these name: an fsmonitor, an
ssh command, a filter, the `uploadpack` of a promisor remote from which it fetches a missing object. Switching each off would
have to be repeated for every new option of git. So git never sees the checkout's `.git`: it runs on an empty repository of
ours, with our config, that only borrows the folder `objects`. What HEAD points to is read here.
"""

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mose.errors import MoseError
from mose.files.safe_path import relative_path

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_EXPECTED = "expected a git work tree with a commit"
# HEAD may name a branch that is itself a symbolic reference; git follows five at most.
_MOST_REFERENCES = 5
_MOST_BYTES = 1 << 12
_MOST_CONFIG_BYTES = 1 << 16
_REMOTE_URL = re.compile(r'^\[remote "([^"\n]+)"\][^\[]*?^\s*url\s*=\s*(\S+)', re.M)
# https://host/owner/name.git, ssh://git@host:22/owner/name and git@host:owner/name.git; a local path has no host.
_OWNER_AND_NAME = re.compile(r"^(?:\w+://[^/]+/|[\w.-]+@[\w.-]+:)(?:.*/)?([^/:]+/[^/]+?)(?:\.git)?/?$")
# Caches that git would trust (commit graph, multi-pack index) are off. Files above 64 MiB are streamed, not held in memory.
_CONFIG = (
    "[core]\n\trepositoryformatversion = 1\n\tbare = true\n\tcommitGraph = false\n\tmultiPackIndex = false\n"
    "\tbigFileThreshold = 64m\n[extensions]\n\tobjectFormat = {object_format}\n"
)


@dataclass(frozen=True)
class GitObjects:
    """A commit and where its objects lie."""

    folder: str
    """As the config names it; begins each message."""
    objects: Path
    commit: str
    """Hash of HEAD's commit: 40 hexadecimal digits (SHA-1) or 64 (SHA-256)."""

    @contextlib.contextmanager
    def run(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run git on these objects, with pipes; it is killed if the block ends before it.

        Raises:
            MoseError: git is not installed.
        """
        with tempfile.TemporaryDirectory(prefix="mose-git-", ignore_cleanup_errors=True) as empty:
            (Path(empty) / "refs").mkdir()
            (Path(empty) / "HEAD").write_text("ref: refs/heads/none\n", "ascii")
            object_format = "sha1" if len(self.commit) == 40 else "sha256"
            (Path(empty) / "config").write_text(_CONFIG.format(object_format=object_format), "ascii")
            try:
                process = subprocess.Popen(
                    ["git", "--git-dir", empty, *arguments],
                    cwd=empty,
                    env=_environment(self.objects),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            except FileNotFoundError:
                raise MoseError(
                    f"{self.folder}: git_checkouts: the program git is not installed; use repositories instead"
                ) from None
            try:
                yield process
            finally:
                # Closing the output first ends a git that still writes; killing it covers one that waits for something else.
                _close(process.stdout)
                _close(process.stdin)
                process.kill()
                process.wait()


def find_objects(folder: str) -> GitObjects:
    """The objects and HEAD of the git work tree (or bare repository) `folder`.

    Raises:
        MoseError: `folder` is not the top of a git work tree, has no commit, or its `.git` cannot be read.
    """
    git_folder = _git_folder(Path(folder))
    common = _linked(git_folder / "commondir", "") or git_folder
    try:
        commit = _commit_of(git_folder, common, "HEAD", _MOST_REFERENCES)
    except (OSError, MoseError) as error:
        raise MoseError(f"{folder}: git_checkouts: HEAD: {error}; {_EXPECTED}") from None
    if commit is None and (common / "reftable").is_dir():
        raise MoseError(
            f"{folder}: git_checkouts: keeps its references in a reftable; expected files: `git refs migrate --ref-format=files`"
        )
    if commit is None:
        raise MoseError(f"{folder}: git_checkouts: HEAD names no commit; {_EXPECTED}")
    return GitObjects(folder, (common / "objects").resolve(), commit)


def origin_of(folder: str) -> str:
    """`owner/name` of the remote `origin`, or of the first remote; empty if there is none. The config is read, never run."""
    try:
        git_folder = _git_folder(Path(folder))
        common = _linked(git_folder / "commondir", "") or git_folder
        with (common / "config").open("rb") as file:
            text = file.read(_MOST_CONFIG_BYTES).decode("utf-8", "replace")
    except (OSError, MoseError):
        return ""
    urls = dict(reversed(_REMOTE_URL.findall(text)))
    url = urls.get("origin") or next(iter(reversed(urls.values())), "")
    found = _OWNER_AND_NAME.search(url)
    return found[1] if found else ""


def _environment(objects: Path) -> dict[str, str]:
    """The environment without git's own variables (GIT_DIR, GIT_SSH_COMMAND, GIT_CONFIG_COUNT, ...), and with everything off."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {
        **ours,
        "GIT_OBJECT_DIRECTORY": str(objects),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        # A list of transports that may be used: none.
        "GIT_ALLOW_PROTOCOL": "",
    }


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        # Closing flushes, and git may be gone.
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def _git_folder(folder: Path) -> Path:
    """The folder with HEAD and objects: `.git`, what a file `.git` points to, or `folder` itself if it is bare."""
    own = folder / ".git"
    if own.is_dir():
        return own
    if linked := _linked(own, "gitdir: "):
        return linked
    if (folder / "HEAD").is_file() and (folder / "objects").is_dir():
        return folder
    top = next((parent for parent in folder.resolve().parents if (parent / ".git").exists()), None)
    if top is not None:
        # Reading it would list the whole enclosing project.
        inside = folder.resolve().relative_to(top).as_posix()
        raise MoseError(f"{folder}: git_checkouts: is the folder {inside}/ of a git work tree; expected the top of one")
    raise MoseError(f"{folder}: git_checkouts: not a git repository; {_EXPECTED}")


def _linked(file: Path, prefix: str) -> Path | None:
    """The folder that a file of one line points to (`.git` of a linked work tree, `commondir`); None if there is no such file."""
    try:
        line = _first_line(file)
    except (OSError, MoseError) as error:
        raise MoseError(f"{file}: git_checkouts: {error}; {_EXPECTED}") from None
    if line is None or not line.startswith(prefix):
        return None
    place = file.parent / line.removeprefix(prefix)
    if not place.is_dir():
        raise MoseError(f"{file}: git_checkouts: points to {place}, where no folder is; {_EXPECTED}")
    return place


def _commit_of(git_folder: Path, common: Path, name: str, depth: int) -> str | None:
    """The commit that a reference points to; None if there is no such reference.

    Raises:
        MoseError: the reference is neither a hash nor the name of another reference, or too many follow each other.
    """
    # Branches belong to all work trees of a repository; HEAD to one.
    line = _first_line((git_folder if name == "HEAD" else common) / name) or _packed(common / "packed-refs", name)
    if line is None:
        return None
    if _COMMIT.fullmatch(line):
        return line
    target = line.removeprefix("ref:").strip()
    if target == line or not target.startswith("refs/") or depth == 0:
        raise MoseError(f"{name} holds {line[:80]!a}, which is no commit and no branch")
    return _commit_of(git_folder, common, relative_path(target, name), depth - 1)


def _packed(file: Path, name: str) -> str | None:
    """The hash of a reference in `packed-refs`, which has one line per reference; None if it is not there."""
    if not file.is_file():
        return None
    with file.open("rb") as lines:
        for line in lines:
            commit, _, packed = line.rstrip(b"\n").partition(b" ")
            if packed == os.fsencode(name):
                return commit.decode("ascii", "replace")
    return None


def _first_line(file: Path) -> str | None:
    """The one line of a small regular file; None if there is none. A named pipe would block for ever."""
    if not file.is_file():
        return None
    with file.open("rb") as content:
        text = content.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES or b"\0" in text:
        raise MoseError(f"{file.name} has more than {_MOST_BYTES} bytes or binary content, expected one line")
    return os.fsdecode(text).rstrip("\n")
