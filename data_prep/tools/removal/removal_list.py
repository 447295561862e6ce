"""Reads removal lists: the blob ids and repositories to remove from a data set, from text files."""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.shards.lineage import is_one_of
from mose.errors import MoseError, first_line

_BLOB_ID = re.compile(r"[0-9a-fA-F]{40}")
MATCHED_COLUMNS = ("blob_id", "repository")


@dataclass(frozen=True)
class RemovalList:
    """Blob ids (40 lower-case hexadecimal digits) and names of repositories, each sorted and without repetitions."""

    blobs: tuple[str, ...]
    repositories: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 of the sorted entries, independent of the order of the lines in the files."""
        text = "\n".join(["blobs", *self.blobs, "repositories", *self.repositories])
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    @cached_property
    def _values(self) -> dict[str, Any]:
        entries = zip(MATCHED_COLUMNS, (self.blobs, self.repositories), strict=True)
        return {column: pa.array(names, pa.string()) for column, names in entries if names}

    @property
    def columns(self) -> list[str]:
        """The lineage columns that are needed to match the list."""
        return list(self._values)

    def marks(self, table: Any) -> Any:
        """A boolean arrow array: whether each line of a lineage table is to be removed."""
        marks = [is_one_of(table[column], values) for column, values in self._values.items()]
        return marks[0] if len(marks) == 1 else pc.or_(*marks)


def read_removal_list(blobs: Path | None, repositories: Path | None) -> RemovalList:
    """Read one blob id or one repository per line; ignores empty lines and text after `#`.

    Raises:
        MoseError: a file is missing or is not text, a line is not a blob id, or there is no entry at all.
    """
    if blobs is None and repositories is None:
        raise MoseError("blobs: not given, expected a file of blob ids, or --repositories with a file of repository names")
    ids = set()
    for number, entry in _entries(blobs) if blobs else ():
        if not _BLOB_ID.fullmatch(entry):
            raise MoseError(f"{blobs}: line {number}: {entry[:60]!r} is not a blob id, expected 40 hexadecimal digits")
        ids.add(entry.lower())
    names = {entry for _, entry in _entries(repositories)} if repositories else set()
    if not ids and not names:
        files = " and ".join(str(path) for path in (blobs, repositories) if path)
        raise MoseError(f"{files}: no entry, expected one blob id or repository name per line")
    return RemovalList(tuple(sorted(ids)), tuple(sorted(names)))


def _entries(path: Path) -> list[tuple[int, str]]:
    """The non-empty lines with their numbers from 1, without comments."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file, expected a text file with one entry per line") from None
    except (OSError, ValueError) as error:
        raise MoseError(f"{path}: not a readable text file: {first_line(error)}") from None
    entries = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, start=1)]
    return [(number, entry) for number, entry in entries if entry]
