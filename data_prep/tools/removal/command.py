"""`mose-data remove`: removes listed files from a finished data set; every row keeps its number.

Only shards that hold a listed file are rewritten. A row that loses snippets is assembled again, with more padding and new labels;
a row that loses all of them has no tokens. Files are replaced by rename: a training run that has the old files mapped continues
undisturbed, and a later one reads the remaining rows in the same order.
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from data_prep.console import counted, show_progress
from data_prep.execution.finish import finish, lock_dataset
from data_prep.filters.name_list import near_matches, unmatched
from data_prep.pipeline.task_marker import marker_path, read_marker, write_marker
from data_prep.shards.lineage import LineageTable
from data_prep.shards.rows import shard_number
from data_prep.tools.lineage import NOTHING_FOUND
from data_prep.tools.removal.journal import Removal, complete, read_unfinished, unfinished_line, write_unfinished
from data_prep.tools.removal.removal_list import RemovalList, read_removal_list
from data_prep.tools.removal.rewrite import ShardRewriter
from mose.command import Command
from mose.dataset.manifest import SPLITS, Manifest, ShardEntry, read_manifest
from mose.dataset.packed_sequence import SpecialTokens
from mose.errors import MoseError
from mose.files.safe_path import path_inside
from mose.files.storage import is_local, storage_path
from mose.files.streams import escaped, make_console
from mose.tokenizer import load_tokenizer

_SHOWN_SHARDS = 20
_SHOWN_FILES = 200
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
    files: dict[tuple[str, str], int]
    """Rows that lose snippets of a file, by (repository, path)."""


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
    files: Counter[tuple[str, str]] = Counter()
    with LineageTable(entry.lineage_in(dataset)) as table:
        for group in table.groups(["row", "num_tokens", "path", *names]):
            rows_S = group["row"].to_numpy()
            snippets_R += np.bincount(rows_S, minlength=entry.rows)
            gone = group.filter(removal.marks(group))
            if gone.num_rows:
                gone_R += np.bincount(gone["row"].to_numpy(), minlength=entry.rows)
                text_tokens += int(gone["num_tokens"].to_numpy().sum())
                for column, values in names.items():
                    values.update(gone[column].unique().to_pylist())
                columns = (gone[name].to_pylist() for name in ("row", "repository", "path"))
                files.update((repository, path) for _, repository, path in set(zip(*columns, strict=True)))
    emptied = int(((gone_R > 0) & (gone_R == snippets_R)).sum())
    blobs, repositories = frozenset(names["blob_id"]), frozenset(names["repository"])
    rows, snippets = int((gone_R > 0).sum()), int(gone_R.sum())
    return ShardHits(split, entry, rows, emptied, snippets, text_tokens, blobs, repositories, dict(files))


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
        repositories=tuple(sorted(name for name in _union(found.repositories for found in hits) if name in removal.names)),
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
    """Print the planned removals per shard, and per file of each repository."""
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
    files: Counter[tuple[str, str]] = Counter()
    for found in hits:
        files.update(found.files)
    by_repository = Counter(repository for repository, _ in files)
    print(f"{counted(len(files), 'file')} of {counted(len(by_repository), 'repository')} would go:")
    for (repository, path), rows in sorted(files.items())[:_SHOWN_FILES]:
        print(escaped(f"  {repository} {path}: {counted(rows, 'row')}").replace("\n", "\\n"))
    if len(files) > _SHOWN_FILES:
        print(f"  and {len(files) - _SHOWN_FILES:,} more files; `mose-data lineage --repository NAME` lists them")


def unmatched_names(dataset: Path, removal: RemovalList, done: Removal) -> dict[str, list[str]]:
    """The listed names that match no repository of the data set, each with the names in it that resemble it most."""
    missing = unmatched(removal.repositories, done.repositories)
    if not missing:
        return {}
    manifest, names = read_manifest(dataset), set[str]()
    for entries in manifest.splits.values():
        for entry in entries:
            with LineageTable(entry.lineage_in(dataset)) as table:
                names |= table.values("repository")
    return {entry: near_matches(entry, names) if number < _NAMED_MISSING else [] for number, entry in enumerate(missing)}


def summary_lines(removal: RemovalList, done: Removal, missing_names: dict[str, list[str]]) -> list[str]:
    """The counts of what was, or would be, removed, and the listed entries that the data set does not hold."""
    taken = f"{counted(done.snippets, 'snippet')} ({counted(done.text_tokens, 'text token')})"
    where = f"in {counted(done.rows, 'row')} of {counted(len(done.shards), 'shard')}"
    lines = [f"{taken} {where}; {done.emptied_rows:,} of these rows have no snippet left"]
    there = set(done.blobs)
    blobs = {blob: list[str]() for blob in removal.blobs if blob not in there}
    for what, listed, missing in (("blob ids", removal.blobs, blobs), ("repositories", removal.repositories, missing_names)):
        if missing:
            shown = list(missing.items())[:_NAMED_MISSING]
            named = ", ".join(f"{name} (near: {', '.join(near)})" if near else name for name, near in shown)
            more = ", ..." if len(missing) > _NAMED_MISSING else ""
            lines.append(f"{len(missing):,} of {len(listed):,} {what} are not in the data set: {named}{more}")
    return lines


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", type=str, help="Folder of a finished data set.")
    parser.add_argument("--blobs", type=str | None, default=None, help="Text file of SHA-1 blob ids, one per line.")
    parser.add_argument(
        "--repositories",
        type=str | None,
        default=None,
        help="Text file of repository names, one per line, in any case; patterns such as owner/* match, # begins a comment.",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="Only list the rows, files and repositories that would be removed."
    )


def _run(parsed: Namespace) -> int:
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
        planned = begun or _record(removal, hits)
        missing_names = unmatched_names(dataset, removal, planned)
        print("\n".join(summary_lines(removal, planned, missing_names)))
        return _exit_code(removal, planned, missing_names)
    # Checked before the lock, so that no lock file is put into a folder that is no data set; `remove` checks again inside it.
    _opened(dataset, removal)
    with lock_dataset(dataset):
        done = remove(dataset, removal)
    record = done or _record(removal, [])
    missing_names = unmatched_names(dataset, removal, record)
    lines = summary_lines(removal, record, missing_names)
    print("\n".join([f"removed: {lines[0]}" if done else "nothing removed", *lines[1:]]))
    if done:
        generations = read_manifest(dataset).generations
        note = f"generation {len(generations)} of the data set; a run on an earlier one resumes on it, and says so"
        print(note, file=sys.stderr)
    return _exit_code(removal, record, missing_names)


def _exit_code(removal: RemovalList, done: Removal, missing_names: dict[str, list[str]]) -> int:
    """Not 0 if an entry of a list matched nothing: a takedown that took nothing down must not pass for done."""
    return NOTHING_FOUND if missing_names or len(done.blobs) < len(removal.blobs) else 0


COMMAND = Command(
    "Remove listed files from a data set; every row keeps its number; exit code 1 if an entry matches nothing.",
    _add_arguments,
    _run,
)
