"""The journal of removals: `removal.json` during a removal, and a line of `removed.jsonl` per completed one.

`removal.json` is written before the first change and deleted after the last, so that an interrupted removal is detected; it
holds the digest of the list, because only the same list can complete it.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from mose.dataset.manifest import UNFINISHED_NAME
from mose.errors import MoseError
from mose.files.atomic_file import write_json, write_text
from mose.files.json_file import parse_json
from mose.files.records import from_plain
from mose.files.safe_path import relative_path

REMOVED_NAME = "removed.jsonl"


@dataclass(frozen=True)
class Removal:
    """One removal: the list, the entries that the data set held, and the counts of what was removed."""

    date: str
    """When the removal began, ISO 8601 in UTC."""
    list_sha256: str
    listed_blobs: int
    listed_repositories: int
    blobs: tuple[str, ...]
    """The listed blob ids that were in the data set."""
    repositories: tuple[str, ...]
    """The listed repositories that were in the data set."""
    shards: tuple[str, ...]
    """Paths of the shards that were rewritten."""
    rows: int
    """Rows that lost snippets, emptied ones included."""
    emptied_rows: int
    snippets: int
    text_tokens: int


def read_unfinished(dataset: Path) -> Removal | None:
    """The removal that began but is not complete, or None.

    Raises:
        MoseError: the file is damaged.
    """
    path = dataset / UNFINISHED_NAME
    return _parse(path, path.read_text("utf-8")) if path.is_file() else None


def write_unfinished(dataset: Path, removal: Removal) -> None:
    """Write the journal of a removal that is about to begin."""
    write_json(dataset / UNFINISHED_NAME, dataclasses.asdict(removal))


def read_removed(dataset: Path) -> list[Removal]:
    """The completed removals, oldest first.

    Raises:
        MoseError: a line is damaged.
    """
    path = dataset / REMOVED_NAME
    if not path.is_file():
        return []
    return [_parse(path, line) for line in path.read_text("utf-8").splitlines()]


def complete(dataset: Path, removal: Removal) -> None:
    """Append the removal to `removed.jsonl`, and delete its journal."""
    earlier = read_removed(dataset)
    # A run that was killed between these two steps has appended it already.
    if removal not in earlier:
        lines = [json.dumps(dataclasses.asdict(entry)) + "\n" for entry in [*earlier, removal]]
        write_text(dataset / REMOVED_NAME, "".join(lines))
    (dataset / UNFINISHED_NAME).unlink()


def unfinished_line(dataset: Path, removal: Removal) -> str:
    """The message for commands that find an unfinished removal."""
    path, digest = dataset / UNFINISHED_NAME, removal.list_sha256[:16]
    begun = f"the removal begun {removal.date} (list {digest}..., {len(removal.shards)} shards) is unfinished"
    return f"{path}: {begun}; expected `mose-data remove` to be run again with the same list"


def _parse(path: Path, text: str) -> Removal:
    try:
        removal = from_plain(Removal, parse_json(text.encode("utf-8")))
    except ValueError as error:
        raise MoseError(f"{path}: not a record of a removal: {error}; expected one written by `mose-data remove`") from None
    for shard in removal.shards:
        relative_path(shard, f"{path}: shards")
    return removal
