"""`mose-data group`: regroups The Stack v2 into parts with one row per repository, each part a random sample of the input."""

import sys

from jsonargparse import ArgumentParser, Namespace

from data_prep.sources.ingest.grouping.config import GroupConfig
from data_prep.sources.ingest.grouping.run import group
from data_prep.sources.stack_v2.grouped import GroupedFolder
from mose.command import Command, add_config, read_config

_SHOWN = 10


def print_grouping(folder: GroupedFolder, output: str) -> None:
    """Print the counts of a grouped folder on standard output, and what was omitted on standard error."""
    held = f"{folder.repositories:,} repositories, {folder.files:,} files, {folder.bytes:,} bytes"
    print(f"{output}: {held} in {len(folder.parts):,} parts")
    if folder.empty_repositories:
        print(f"{folder.empty_repositories:,} rows without files omitted", file=sys.stderr)
    if folder.contents_left_out:
        names = ", ".join(list(folder.contents_left_out)[:_SHOWN])
        number = len(folder.contents_left_out)
        print(f"contents of {number:,} repositories omitted, too large for memory_bytes: {names}", file=sys.stderr)


def _add_arguments(parser: ArgumentParser) -> None:
    add_config(parser, GroupConfig)


def _run(parsed: Namespace) -> None:
    config = read_config(parsed, GroupConfig)
    print_grouping(group(config), config.output)


COMMAND = Command("Group The Stack v2's rows by repository into parts, in bounded memory.", _add_arguments, _run)
