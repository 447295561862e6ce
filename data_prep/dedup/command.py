"""`mose-data dedup`: removes near-duplicates from parquet files, or finds them among the files of repositories."""

from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from data_prep.dedup.config import DedupConfig
from mose.command import Command, add_config, read_config

Phase = Literal["signatures", "bands", "verify", "groups", "cut"]


def _add_arguments(parser: ArgumentParser) -> None:
    add_config(parser, DedupConfig)
    parser.add_argument(
        "--phase",
        type=Phase | None,
        default=None,
        help="Run only this phase; phases follow each other in this order, and `groups` has one task.",
    )
    parser.add_argument(
        "--task",
        type=int | None,
        default=None,
        help="Run only this task of the phase, 0 to num_tasks - 1, as one element of a job array.",
    )


def _run(parsed: Namespace) -> None:
    # Half of the time until a message, which `--help` and a refused config need not wait for.
    from data_prep.dedup.runner import deduplicate, print_report

    config = read_config(parsed, DedupConfig)
    report = deduplicate(config, parsed.phase, parsed.task)
    if report is not None:
        print_report(report, config.output)
    elif parsed.task is None:
        print(f"{parsed.phase} is done; `mose-data dedup` without --phase runs what is missing and writes the report")
    else:
        print(f"task {parsed.task} of {parsed.phase} is done")


COMMAND = Command("Remove near-duplicates of rows that stay: MinHash candidates, exact Jaccard.", _add_arguments, _run)
