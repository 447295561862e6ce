"""Reads opt-out lists: repositories and blobs whose owners do not want them in a training set."""

import functools
from dataclasses import dataclass, field

from data_prep.filters.name_list import NameList, check_entry, is_blob_id, name_key, read_entries
from mose.files.storage import storage_path


@dataclass(frozen=True)
class OptOut:
    """Opted-out repositories and blobs; takes about 150 bytes of memory per entry."""

    repositories: frozenset[str] = frozenset()
    """Names and patterns, case-folded, because code hosts treat `Owner/Name` and `owner/name` as the same."""
    blobs: frozenset[bytes] = frozenset()
    """SHA-1 of contents, 20 bytes each."""
    names: NameList = field(default_factory=NameList)
    """Matches `repositories`."""

    def reason(self, repository: str, blob_id: str) -> str:
        """`repository` or `blob` if a file of this repository with this blob id is opted out, else empty."""
        if repository in self.names:
            return "repository"
        return "blob" if self.blobs and _blob_key(blob_id) in self.blobs else ""


@functools.lru_cache(maxsize=4)
def load_opt_out(files: tuple[str, ...]) -> OptOut:
    """The entries of all `files` (paths or URLs); read once per process, because every repository is checked against them.

    Each is a list as `read_entries` reads it, of repository names, patterns such as owner/*, and 40-digit blob ids.

    Raises:
        MoseError: a file cannot be read, or a line is neither; the message names file and line.
    """
    names, blobs = set[str](), set[str]()
    for file in files:
        for entry in read_entries(storage_path(file)):
            check_entry(file, entry)
            (names if entry.is_quoted or not is_blob_id(entry.text) else blobs).add(entry.text)
    return OptOut(frozenset(map(name_key, names)), frozenset(map(bytes.fromhex, blobs)), NameList.of(names))


def _blob_key(blob_id: str) -> bytes:
    return bytes.fromhex(blob_id) if is_blob_id(blob_id) else b""
