"""`mose-data fetch`: downloads the file contents that packing needs into a blob store, resuming a stopped run."""

import asyncio
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from data_prep.sources.blobs.store import BODY, INVALID_ID
from data_prep.sources.ingest.blob_writer import BlobWriter
from data_prep.sources.ingest.fetching.config import FetchConfig
from data_prep.sources.ingest.fetching.counts import FetchCounts, show_counts
from data_prep.sources.ingest.fetching.wanted import count_files, input_files, wanted_blobs
from mose.command import INTERRUPTED, Command, add_config, read_config
from mose.config import to_plain
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.files.json_file import parse_json
from mose.files.records import from_plain

INCOMPLETE = 1


def fetch(config: FetchConfig) -> FetchCounts:
    """Fetch the blobs of the inputs that the store has no record of; writes statistics even if it is interrupted.

    Raises:
        MoseError: an input cannot be read, another process fetches the same part, or the server refuses access.
        OSError: the disk is full.
    """
    paths = input_files(config.inputs, config.task, config.num_tasks)
    counts = FetchCounts()
    with BlobWriter(Path(config.store), config.task, config.pack_bytes) as writer:
        try:
            with show_counts(counts, count_files(paths)) as show:
                asyncio.run(_fetch(config, paths, writer, counts, show))
        finally:
            _write_statistics(config, counts)
    return counts


def statistics_path(config: FetchConfig) -> Path:
    """The file with the counts of a task's runs, in order of time."""
    return Path(config.store) / f"fetch-{config.task:05d}-of-{config.num_tasks:05d}.json"


def _write_statistics(config: FetchConfig, counts: FetchCounts) -> None:
    """Append the counts of this run to those of the task's earlier runs."""
    path = statistics_path(config)
    try:
        runs = from_plain(dict[str, list[Any]], parse_json(path.read_bytes()))["runs"] if path.is_file() else []
    except (ValueError, KeyError) as error:
        raise MoseError(f"{path}: not counts of earlier runs: {error}; move it away") from None
    ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(path, {"runs": [*runs, {"ended": ended, "config": to_plain(config), **counts.to_plain()}]})


def print_counts(counts: FetchCounts) -> None:
    """Print the number of blobs per outcome on standard output."""
    print(f"{counts.wanted:,} blobs wanted: {counts.stored[BODY]:,} fetched, {counts.known[BODY]:,} already in the store")
    without = (counts.stored + counts.known).items()
    rows = [(name, number, "in the store as such") for name, number in sorted(without) if name != BODY]
    rows += [(name, number, _advice(name)) for name, number in sorted(counts.given_up.items()) if number]
    rows += [("repeated", counts.repeated, "named again while in flight")] if counts.repeated else []
    for name, number, meaning in rows:
        print(f"  {name:<18}{number:>14,}  {meaning}")
    retries = ", ".join(f"{number:,} {name}" for name, number in sorted(counts.retries.items())) or "none"
    received, decoded = counts.bytes_received / 1e6, counts.bytes_decoded / 1e6
    print(f"{counts.requests:,} requests in {counts.seconds:,.1f} s, {received:,.1f} MB received, {decoded:,.1f} MB decoded")
    print(f"{counts.stored[BODY] / max(counts.seconds, 1e-9):,.0f} blobs/s; retries: {retries}")


async def _fetch(
    config: FetchConfig, paths: list[str], writer: BlobWriter, counts: FetchCounts, show: Callable[[], None]
) -> None:
    # Imported late: aiohttp and botocore are two thirds of the start of the command.
    from data_prep.sources.ingest.fetching.fetcher import Fetcher
    from data_prep.sources.ingest.fetching.remote import open_remote

    remote = open_remote(config)
    try:
        await Fetcher(config, remote, writer, counts, show).run(wanted_blobs(paths))
    finally:
        await remote.close()


def _advice(reason: str) -> str:
    return "the input's blob_id is no SHA-1" if reason == INVALID_ID else "not in the store: run again"


def _add_arguments(parser: ArgumentParser) -> None:
    add_config(parser, FetchConfig)


def _run(parsed: Namespace) -> int:
    config = read_config(parsed, FetchConfig)
    try:
        counts = fetch(config)
    except KeyboardInterrupt:
        print("fetch: stopped; what was fetched is kept: run again to continue", file=sys.stderr)
        return INTERRUPTED
    print_counts(counts)
    given_up = sum(counts.given_up.values()) - counts.given_up[INVALID_ID]
    return INCOMPLETE if given_up else 0


COMMAND = Command("Fetch bodies of The Stack v2 from Software Heritage into a blob store.", _add_arguments, _run)
