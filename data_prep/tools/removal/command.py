"""`mose-data remove`: removes listed files from a finished data set; every row keeps its number.

Only shards that hold a listed file are rewritten. A row that loses snippets is assembled again, with more padding and new labels;
a row that loses all of them has no tokens. Files are replaced by rename: a training run that has the old files mapped continues
undisturbed, and a later one reads the remaining rows in the same order.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from data_prep.console import counted, show_progress
from data_prep.execution.finish import finish, lock_dataset
from data_prep.pipeline.task_marker import marker_path, read_marker, write_marker
from data_prep.shards.lineage import LineageTable
from data_prep.shards.rows import shard_number
from data_prep.tools.removal.journal import Removal, complete, read_unfinished, unfinished_line, write_unfinished
from data_prep.tools.removal.removal_list import RemovalList, read_removal_list
from data_prep.tools.removal.rewrite import ShardRewriter
from mose.command import Command
from mose.dataset.manifest import SPLITS, Manifest, ShardEntry, read_manifest
from mose.dataset.packed_sequence import SpecialTokens
from mose.errors import MoseError
from mose.files.safe_path import path_inside
from mose.files.storage import is_local, storage_path
from mose.files.streams import make_console
from mose.tokenizer import load_tokenizer

_SHOWN_SHARDS = 20
_NAMED_MISSING = 3


@dataclass(frozen=True)
class ShardHits:
    """The matches of a removal list in one shard."""

    split: str
    entry: ShardEntry
    rows: int
    emptied_rows: int
    snippets: int
    text_tokens: int
    blobs: frozenset[str]
    repositories: frozenset[str]


def find_hits(dataset: Path, manifest: Manifest, removal: RemovalList) -> list[ShardHits]:
    """The shards that hold listed files, with counts.

    Raises:
        MoseError: a lineage table is missing or damaged.
    """
    shards = [(split, entry) for split, entries in manifest.splits.items() for entry in entries]
    found = []
    with show_progress("searching", len(shards), "lineage tables") as advance:
        for split, entry in shards:
            hits = _shard_hits(dataset, split, entry, removal)
            found += [hits] if hits.snippets else []
            advance(1)
    return found


def _shard_hits(dataset: Path, split: str, entry: ShardEntry, removal: RemovalList) -> ShardHits:
    snippets_R, gone_R = np.zeros(entry.rows, np.int64), np.zeros(entry.rows, np.int64)
    text_tokens = 0
    names: dict[str, set[str]] = {"blob_id": set(), "repository": set()}
    with LineageTable(entry.lineage_in(dataset)) as table:
        for group in table.groups(["row", "num_tokens", *names]):
            rows_S = group["row"].to_numpy()
            snippets_R += np.bincount(rows_S, minlength=entry.rows)
            gone = group.filter(removal.marks(group))
            if gone.num_rows:
                gone_R += np.bincount(gone["row"].to_numpy(), minlength=entry.rows)
                text_tokens += int(gone["num_tokens"].to_numpy().sum())
                for column, values in names.items():
                    values.update(gone[column].unique().to_pylist())
    emptied = int(((gone_R > 0) & (gone_R == snippets_R)).sum())
    blobs, repositories = frozenset(names["blob_id"]), frozenset(names["repository"])
    return ShardHits(split, entry, int((gone_R > 0).sum()), emptied, int(gone_R.sum()), text_tokens, blobs, repositories)


def remove(dataset: Path, removal: RemovalList) -> Removal | None:
    """Remove the listed files from a data set; None if it holds none of them. A rerun after a kill completes the removal.

    The order is: journal, shards, manifest, log of removals. The journal goes first, so that a data set with only some shards
    rewritten is recognised as unfinished; it is deleted last, when the manifest describes all shards again.

    Raises:
        MoseError: another removal is unfinished, a completion marker is missing, or the data set is not on a local file system
            (in these cases nothing was changed); a row does not match its lineage.
    """
    manifest, begun = _opened(dataset, removal)
    hits = find_hits(dataset, manifest, removal)
    if begun is None:
        if not hits:
            return None
        # A dry run of the last step, which needs the marker and the files of every task: it must not fail after shards changed.
        finish(dataset)
        begun = _record(removal, hits)
        write_unfinished(dataset, begun)
    special = load_tokenizer(dataset).special
    with show_progress("removing", len(hits), "shards") as advance:
        for found in hits:
            _rewrite(dataset, manifest, found, special, removal)
            advance(1)
    finish(dataset)
    complete(dataset, begun)
    return begun


def _opened(dataset: Path, removal: RemovalList) -> tuple[Manifest, Removal | None]:
    if not is_local(dataset):
        raise MoseError(
            f"{dataset}: dataset: is on an object store, where a file cannot be replaced by rename; expected a local folder "
            "(copy it, remove, and upload the files that changed)"
        )
    for folder in ("tasks", "dropped", *SPLITS):
        # What this command writes and deletes by fixed names must not land in another data set either.
        path_inside(dataset, folder, f"{dataset}: {folder}")
    manifest, begun = read_manifest(dataset), read_unfinished(dataset)
    if begun is not None and begun.list_sha256 != removal.sha256:
        raise MoseError(unfinished_line(dataset, begun) + f"; the list given is {removal.sha256[:16]}...")
    return manifest, begun


def _record(removal: RemovalList, hits: Sequence[ShardHits]) -> Removal:
    return Removal(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        list_sha256=removal.sha256,
        listed_blobs=len(removal.blobs),
        listed_repositories=len(removal.repositories),
        blobs=tuple(sorted(set(removal.blobs) & _union(found.blobs for found in hits))),
        repositories=tuple(sorted(set(removal.repositories) & _union(found.repositories for found in hits))),
        shards=tuple(found.entry.path for found in hits),
        rows=sum(found.rows for found in hits),
        emptied_rows=sum(found.emptied_rows for found in hits),
        snippets=sum(found.snippets for found in hits),
        text_tokens=sum(found.text_tokens for found in hits),
    )


def _union(sets: Iterator[frozenset[str]]) -> set[str]:
    return set().union(*sets)


def _rewrite(dataset: Path, manifest: Manifest, found: ShardHits, special: SpecialTokens, removal: RemovalList) -> None:
    """Replace a shard's files and their entry in the completion marker of its task."""
    path = marker_path(dataset, shard_number(found.entry))
    result = read_marker(path)
    if result is None:
        raise MoseError(f"{path}: no such completion marker; expected that of the task which wrote {found.entry.path}")
    rewriter = ShardRewriter(dataset, found.entry, manifest.layout(), special, removal)
    with rewriter.rewritten() as (entry, counts):
        kept = counts.pop("kept_text_tokens")
        rows = result.rows[found.split]
        rows = {**rows, **counts, "dropped_tokens": rows["text_tokens"] - kept}
        changed = dataclasses.replace(
            result, shards={**result.shards, found.split: entry}, rows={**result.rows, found.split: rows}
        )
        write_marker(dataset, changed)


def print_plan(hits: Sequence[ShardHits]) -> None:
    """Print the planned removals per shard."""
    table = Table("shard", title="planned removals", title_justify="left")
    table.columns[0].no_wrap = True
    for name in ("rows changed", "of these emptied", "of all rows", "snippets", "text tokens"):
        table.add_column(name, justify="right")
    for found in hits[:_SHOWN_SHARDS]:
        counts = [f"{value:,}" for value in (found.rows, found.emptied_rows, found.entry.rows, found.snippets, found.text_tokens)]
        table.add_row(found.entry.path, *counts)
    if len(hits) > _SHOWN_SHARDS:
        table.add_row(f"{len(hits) - _SHOWN_SHARDS} more shards", "", "", "", "", "")
    make_console().print(table)


def summary_lines(removal: RemovalList, done: Removal) -> list[str]:
    """The counts of what was, or would be, removed, and the listed entries that the data set does not hold."""
    taken = f"{counted(done.snippets, 'snippet')} ({counted(done.text_tokens, 'text token')})"
    where = f"in {counted(done.rows, 'row')} of {counted(len(done.shards), 'shard')}"
    lines = [f"{taken} {where}; {done.emptied_rows:,} of these rows have no snippet left"]
    pairs = (("blob ids", removal.blobs, done.blobs), ("repositories", removal.repositories, done.repositories))
    for what, listed, found in pairs:
        there = set(found)
        missing = [name for name in listed if name not in there]
        if missing:
            named = ", ".join(missing[:_NAMED_MISSING]) + (", ..." if len(missing) > _NAMED_MISSING else "")
            lines.append(f"{len(missing):,} of {len(listed):,} {what} are not in the data set: {named}")
    return lines


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", type=str, help="Folder of a finished data set.")
    parser.add_argument("--blobs", type=str | None, default=None, help="Text file of SHA-1 blob ids, one per line.")
    parser.add_argument("--repositories", type=str | None, default=None, help="Text file of repository names, one per line.")
    parser.add_argument("--dry-run", action="store_true", help="Only print which shards, rows and tokens would be removed.")


def _run(parsed: Namespace) -> None:
    dataset = storage_path(parsed.dataset)
    files = [storage_path(text) if text else None for text in (parsed.blobs, parsed.repositories)]
    removal = read_removal_list(*files)
    if parsed.dry_run:
        manifest, begun = _opened(dataset, removal)
        hits = find_hits(dataset, manifest, removal)
        if begun:
            print(unfinished_line(dataset, begun))
        if hits:
            print_plan(hits)
        print("\n".join(summary_lines(removal, begun or _record(removal, hits))))
        return
    # Checked before the lock, so that no lock file is put into a folder that is no data set; `remove` checks again inside it.
    _opened(dataset, removal)
    with lock_dataset(dataset):
        done = remove(dataset, removal)
    lines = summary_lines(removal, done or _record(removal, []))
    print("\n".join([f"removed: {lines[0]}" if done else "nothing removed", *lines[1:]]))
    if done:
        generations = read_manifest(dataset).generations
        note = f"generation {len(generations)} of the data set; a run on an earlier one resumes on it, and says so"
        print(note, file=sys.stderr)


COMMAND = Command("Remove listed files from a data set; every row keeps its number.", _add_arguments, _run)
