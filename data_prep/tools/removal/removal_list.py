"""Reads removal lists: the blob ids and repositories to remove from a data set, from text files."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.filters.name_list import NameList, check_entry, is_blob_id, read_entries
from data_prep.shards.lineage import is_one_of, text_marks
from mose.errors import MoseError


@dataclass(frozen=True)
class RemovalList:
    """Blob ids (40 lower-case hexadecimal digits) and names or patterns of repositories, each sorted, without repetitions."""

    blobs: tuple[str, ...]
    repositories: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 of the sorted entries, independent of the order of the lines in the files."""
        text = "\n".join(["blobs", *self.blobs, "repositories", *self.repositories])
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    @cached_property
    def names(self) -> NameList:
        """Matches the names of `repositories` by the rules of every list: any case, NAME includes NAME#2, `*` and `?`."""
        return NameList.of(self.repositories)

    @property
    def columns(self) -> list[str]:
        """The lineage columns that are needed to match the list."""
        return ["blob_id"] * bool(self.blobs) + ["repository"] * bool(self.repositories)

    def marks(self, table: Any) -> Any:
        """A boolean arrow array: whether each line of a lineage table is to be removed."""
        marks = []
        if self.blobs:
            marks.append(is_one_of(table["blob_id"], pa.array(self.blobs, pa.string())))
        if self.repositories:
            marks.append(text_marks(table["repository"], self.names.__contains__))
        if len(marks) == 1:
            return marks[0]
        # Takes a tenth of a second to load, and only lists of both kinds need it.
        import pyarrow.compute as pc

        return pc.or_(*marks)


def read_removal_list(blobs: Path | None, repositories: Path | None) -> RemovalList:
    """Read one blob id or one repository per line, by the rules of `read_entries`.

    Raises:
        MoseError: a file is missing or is not text, a line is not a blob id or not a name, or there is no entry at all.
    """
    if blobs is None and repositories is None:
        raise MoseError("blobs: not given, expected a file of blob ids, or --repositories with a file of repository names")
    ids, names = set(), set()
    for entry in read_entries(blobs) if blobs else ():
        if not is_blob_id(entry.text):
            raise MoseError(f"{blobs}: line {entry.line}: {entry.text[:60]!r} is not a blob id, expected 40 hexadecimal digits")
        ids.add(entry.text.lower())
    for entry in read_entries(repositories) if repositories else ():
        check_entry(str(repositories), entry)
        if is_blob_id(entry.text) and not entry.is_quoted:
            raise MoseError(
                f"{repositories}: line {entry.line}: {entry.text!r} is a blob id; expected a name: give it to --blobs"
            )
        names.add(entry.text)
    if not ids and not names:
        files = " and ".join(str(path) for path in (blobs, repositories) if path)
        raise MoseError(f"{files}: no entry, expected one blob id or repository name per line")
    return RemovalList(tuple(sorted(ids)), tuple(sorted(names)))
