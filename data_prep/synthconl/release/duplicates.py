"""Near-duplicate groups of a draft, as `mose-data dedup` writes them, and the splits of their rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.sources.repositories import HELD_OUT, TRAIN
from mose.errors import MoseError, first_line
from mose.files.parquet_errors import PARQUET_ERRORS

NEAR_DUPLICATE, NEAR_HELD_OUT = "near_duplicate", "near_held_out"
_COLUMNS = ("id", "group", "kept")


@dataclass(frozen=True)
class Membership:
    """The group of a row, and whether the row is kept."""

    group: int | str
    kept: bool


class Duplicates:
    """Rows that have a near-duplicate, by row number or by id; rows that are not listed have none."""

    def __init__(self, members: dict[int | str, Membership]):
        self._members = members
        self._held_out: set[int | str] = set()

    def of(self, number: int, identity: str) -> Membership | None:
        """The membership of a row, if it has one."""
        return self._members.get(number) or self._members.get(identity)

    def check_rows(self, rows: int, place: str) -> None:
        """Check that no row number is beyond the draft.

        Raises:
            MoseError: one is; the groups are of another file.
        """
        beyond = [identity for identity in self._members if isinstance(identity, int) and not 0 <= identity < rows]
        if beyond:
            raise MoseError(f"{place}: id: row {beyond[0]} of a draft of {rows:,} rows; expected the groups of this draft")

    def see_splits(self, rows: Iterable[tuple[int, str, str]], keep_one: bool) -> None:
        """Learn which groups have held-out rows that stay, from the number, id and split of every row."""
        for number, identity, split in rows:
            member = self.of(number, identity) if split == HELD_OUT else None
            if member is not None and (member.kept or not keep_one):
                self._held_out.add(member.group)

    def reason(self, number: int, identity: str, split: str, keep_one: bool) -> str:
        """Why a row is dropped; empty if it is kept.

        With `keep_one`, rows that are not marked as kept go. Rows of train that are in a group with a held-out row that stays go,
        too: no group is in two splits, and the held-out set stays as it was drawn.
        """
        member = self.of(number, identity)
        if member is None:
            return ""
        if keep_one and not member.kept:
            return NEAR_DUPLICATE
        return NEAR_HELD_OUT if split == TRAIN and member.group in self._held_out else ""


def read_duplicates(place: Path) -> Duplicates:
    """The groups of a parquet file, or of all below a folder.

    Raises:
        MoseError: nothing is there, a file cannot be read, or a column is missing or of another type.
    """
    paths = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
    if not paths:
        raise MoseError(f"{place}: duplicates: no parquet file, expected the groups of `mose-data dedup`")
    members: dict[int | str, Membership] = {}
    for path in paths:
        for identity, group, kept in zip(*_columns(path), strict=True):
            members[identity] = Membership(group, kept)
    return Duplicates(members)


def _columns(path: Path) -> list[list[int | str]]:
    try:
        schema = pq.read_schema(path)
        for name in _COLUMNS:
            if name not in schema.names:
                raise MoseError(f"{path}: {name}: no such column; expected {', '.join(_COLUMNS)}")
            kind = schema.field(name).type
            if not (pa.types.is_boolean(kind) if name == "kept" else pa.types.is_integer(kind) or pa.types.is_string(kind)):
                raise MoseError(
                    f"{path}: {name}: column of type {kind}, expected {'bool' if name == 'kept' else 'int64 or string'}"
                )
        table = pq.read_table(path, columns=list(_COLUMNS), use_threads=False)
        return [table.column(name).to_pylist() for name in _COLUMNS]
    except PARQUET_ERRORS as error:
        raise MoseError(f"{path}: not a readable parquet file of groups: {first_line(error)}") from None
