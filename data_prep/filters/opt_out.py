"""Reads opt-out lists: repositories and blobs whose owners do not want them in a training set."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mose.errors import MoseError
from mose.files.storage import storage_path

_HEXADECIMAL = re.compile(r"[0-9a-fA-F]+")
_BLOB_ID_DIGITS = 40
# An entry of at least this many hexadecimal digits is a mistyped or other hash (MD5, git SHA-256), not a repository name.
_HASH_DIGITS = 32
_COMMENT = re.compile(r"(^|\s)#.*")
# A second repository of one name is listed as NAME#2; an opt-out of NAME includes it.
_NUMBER = re.compile(r"#\d+$")


@dataclass(frozen=True)
class OptOut:
    """Opted-out repositories and blobs; takes about 150 bytes of memory per entry."""

    repositories: frozenset[str] = frozenset()
    """Names, case-folded, because code hosts treat `Owner/Name` and `owner/name` as the same."""
    blobs: frozenset[bytes] = frozenset()
    """SHA-1 of contents, 20 bytes each."""

    def reason(self, repository: str, blob_id: str) -> str:
        """`repository` or `blob` if a file of this repository with this blob id is opted out, else empty."""
        if self.repositories:
            name = repository.casefold()
            if name in self.repositories or _NUMBER.sub("", name) in self.repositories:
                return "repository"
        return "blob" if self.blobs and _blob_key(blob_id) in self.blobs else ""


@functools.lru_cache(maxsize=4)
def load_opt_out(files: tuple[str, ...]) -> OptOut:
    """The entries of all `files` (paths or URLs); read once per process, because every repository is checked against them.

    Each is UTF-8 text with one repository name or 40-digit blob id per line; `#` begins a comment.

    Raises:
        MoseError: a file cannot be read, or a line is neither; the message names file and line.
    """
    entries = {entry for file in files for entry in read_entries(file)}
    blobs = {entry for entry in entries if _is_blob_id(entry)}
    return OptOut(frozenset(entry.casefold() for entry in entries - blobs), frozenset(map(bytes.fromhex, blobs)))


def read_entries(file: str) -> Iterator[str]:
    """The entries of one list file in file order, without comments and empty lines.

    Raises:
        MoseError: the file cannot be read or is not UTF-8, or a line is neither a repository name nor a blob id.
    """
    try:
        text = storage_path(file).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise MoseError(f"{file}: cannot be read: {error.strerror or error}; expected a list of names and blob ids") from None
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise MoseError(f"{file}: line {number}: is not UTF-8; expected a repository name or a blob id of 40 digits") from None
    for number, line in enumerate(text.split("\n"), start=1):
        entry = _COMMENT.sub("", line).strip()
        if entry:
            _check(file, number, entry)
            yield entry


def _check(file: str, line: int, entry: str) -> None:
    wrong = ""
    if "://" in entry:
        wrong = "is a URL"
    elif any(character.isspace() for character in entry):
        wrong = "holds more than one word"
    elif _HEXADECIMAL.fullmatch(entry) and len(entry) >= _HASH_DIGITS and not _is_blob_id(entry):
        wrong = f"is a hash of {len(entry)} digits"
    if wrong:
        raise MoseError(f"{file}: line {line}: {entry!r:.80} {wrong}; expected a repository name or a blob id of 40 digits")


def _is_blob_id(entry: str) -> bool:
    return len(entry) == _BLOB_ID_DIGITS and _HEXADECIMAL.fullmatch(entry) is not None


def _blob_key(blob_id: str) -> bytes:
    return bytes.fromhex(blob_id) if _is_blob_id(blob_id) else b""
