"""The types that all sources share: listed repositories, their files, kinds of source, and the split of a repository."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mose.seeding import derive_key

# No source reads more than this (64 MiB) of one file, so that a disk image in a repository cannot exhaust the memory.
# `FiltersConfig.max_bytes` is never larger, so a file truncated here is always dropped as too large.
READ_LIMIT_BYTES = 1 << 26


@dataclass(frozen=True, order=True, slots=True)
class RepositoryRef:
    """A repository that is listed but not read yet; small, so that millions fit in memory. Sorts by name."""

    name: str
    """Unique among the listed repositories: a second one with the same name has the suffix `#2`."""
    kind: str
    """Name of the `SourceKind` that reads it."""
    location: str
    """Folder, git work tree, distribution or parquet file."""
    index: int = 0
    """Row number in a parquet file; 0 elsewhere."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a repository before filtering: its bytes and the file metadata of The Stack v2."""

    repository: str
    path: str
    """Inside the repository, with a leading `/` as in The Stack."""
    content: bytes
    language: str
    licences: tuple[str, ...]
    licence_type: str
    """`permissive`, `no_license` or `unknown`."""
    blob_id: str
    """SHA-1 of the content in hexadecimal, as in The Stack."""
    encoding: str = "UTF-8"
    is_vendored: bool = False
    is_generated: bool = False
    is_documentation: bool = False
    origin: str = ""
    """`owner/name` of the repository's remote, which opt-out lists may name; empty if it has none."""
    problem: str = ""
    """Why there is no content (`missing`, `not_fetched`, `not_gzip`, ...); empty if there is."""
    size: int = -1
    """Bytes of a file whose content was not read, not wholly, or was changed by a filter; -1 if it is as in the source."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the file, whether they were read or not."""
        return len(self.content) if self.size < 0 else self.size


UNREADABLE = "unreadable"
"""The state of a repository that cannot be read."""
OVER_REPOSITORY_LIMIT = "over_max_repository_bytes"
"""`SourceFile.problem` of the files beyond `max_repository_bytes`."""


class Selection:
    """Which files of one repository are read: a predicate of paths that counts what it refuses.

    Once `is_full` is set, a source yields the remaining files without content, so that they are counted but not read.
    """

    def __init__(self, suffixes: tuple[str, ...] = (), only: frozenset[str] | None = None):
        """`only`, if given, holds the paths that are read; the others are passed over uncounted."""
        self._suffixes = suffixes
        self._only = only
        self.is_full = False
        self.refused = 0
        """Files whose path has none of the wanted suffixes."""
        self.passed_over = 0
        """Symbolic links, submodules, pipes, sockets and devices: what has a name but no content of its own."""

    def __call__(self, path: str) -> bool:
        """Whether the file at `path` is wanted."""
        if self._suffixes and not path.endswith(self._suffixes):
            self.refused += 1
            return False
        return self._only is None or path.lstrip("/") in self._only


class Limit:
    """Decides in path order which files of a repository are within a limit of bytes in total; 0 means no limit."""

    def __init__(self, limit: int):
        self._limit = limit
        self._total = 0
        self.is_reached = False
        """A file did not fit, so that all further ones are beyond the limit."""

    def takes(self, size: int) -> bool:
        """Whether the next file is within the limit."""
        if not self._limit:
            return True
        # A file above the whole limit is passed over alone: it must not leave the repository empty.
        self.is_reached |= size <= self._limit < self._total + size
        if size > self._limit or self.is_reached:
            return False
        self._total += size
        return True


class SelectedFiles(Iterator[SourceFile]):
    """The files of a repository, with the selection that counts those which were not wanted."""

    def __init__(self, files: Iterator[SourceFile], selection: Selection):
        self._files = files
        self.selection = selection

    def __next__(self) -> SourceFile:
        return next(self._files)


def distinct(names: Iterable[str]) -> list[str]:
    """Names that are equal after decoding made distinct: the second of two files NAME becomes NAME#2, so that none is lost."""
    listed = list(names)
    taken, numbered = set(listed), []
    counts: dict[str, int] = {}
    for name in listed:
        counts[name] = counts.get(name, 0) + 1
        found = name
        while found in taken and counts[name] > 1:
            found = f"{name}#{counts[name]}"
            counts[name] += found in taken
        taken.add(found)
        numbered.append(found)
    return numbered


def is_full(wanted: Callable[[str], bool]) -> bool:
    """Whether no more content of this repository is wanted."""
    return isinstance(wanted, Selection) and wanted.is_full


def pass_over(wanted: Callable[[str], bool]) -> None:
    """Count something in a repository that is no regular file."""
    if isinstance(wanted, Selection):
        wanted.passed_over += 1


OVER_HELD_OUT_LIMIT = "over_held_out_repository_bytes"
"""`SourceFile.problem` of the files beyond `held_out_repository_bytes`."""


@dataclass(frozen=True)
class SourceKind:
    """A kind of source: how to list the repositories of a config entry, and how to read one of them."""

    name: str
    """`RepositoryRef.kind` of its repositories."""
    list_entry: Callable[[str, str], list[RepositoryRef]]
    """The repositories of one entry of the config field, given the entry and the blob store (both may be empty)."""
    read: Callable[[RepositoryRef, Callable[[str], bool], str], Iterator[SourceFile]]
    """The wanted files of a repository in path order, given a predicate of paths and the blob store."""
    accepts: Callable[[str], bool] = lambda entry: True
    """Whether an entry is of this kind, if a config field has several kinds; the first kind that accepts an entry gets it."""
    facts: Callable[[str], list[str]] | None = None
    """What identifies the content of an entry without listing it; None means the names of its repositories."""
    knows_licences: bool = False
    """Whether the source names the licences of its files; else they are detected."""
    knows_files: bool = False
    """Whether the source has language, encoding and flags of its files; else they are detected."""
    state: Callable[[RepositoryRef], str] | None = None
    """What changes when the content of a repository does, in words; None where `facts` do."""


@dataclass(frozen=True)
class TextFile:
    """A file that passed the filters, decoded."""

    source: SourceFile
    text: str
    replaced: str = ""
    """Kinds and numbers of the secrets and addresses that were replaced, such as `email 2, private_key 1`."""

    @property
    def utf8(self) -> bytes:
        """The text as UTF-8: the unchanged bytes of the source if these are UTF-8."""
        return self.source.content if is_utf8(self.source.encoding) else self.text.encode("utf-8")


def is_utf8(encoding: str) -> bool:
    """Whether bytes in this encoding are valid UTF-8 without conversion."""
    return encoding.upper() in ("UTF-8", "UTF8", "ASCII", "US-ASCII")


def content_sha1(content: bytes) -> str:
    """SHA-1 of the bytes in hexadecimal: the blob id of a file whose source has none."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


TRAIN = "train"
HELD_OUT = "held_out"
# Two sources may hold the same repository; the second is listed as NAME#2 and must be in the same split.
_NUMBER = re.compile(r"#\d+$")


def unnumbered(repository: str) -> str:
    """The name under which a source gave a repository: NAME of a second one, which is listed as NAME#2."""
    return _NUMBER.sub("", repository)


def split_of(repository: str, seed: int, held_out_fraction: float) -> str:
    """`held_out` for about `held_out_fraction` of all repository names, else `train`; never divides a repository."""
    key = derive_key(seed, "split", unnumbered(repository))
    return HELD_OUT if key < held_out_fraction * 2**64 else TRAIN
