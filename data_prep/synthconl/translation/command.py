"""`mose-data translate`: seeds to a second language by a model behind an OpenAI-compatible server, resuming a stopped run."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from data_prep.console import counted, show_progress
from data_prep.synthconl.mining.seed_file import count_seeds
from data_prep.synthconl.translation.config import TranslateConfig
from data_prep.synthconl.translation.counts import TranslationCounts
from data_prep.synthconl.translation.journal import Journal
from data_prep.synthconl.translation.server import PassingError, Server
from data_prep.synthconl.translation.translator import Translator, gone
from mose.command import Command, add_config, read_config
from mose.files.lock import lock_file

INCOMPLETE = 1


def translate(config: TranslateConfig) -> TranslationCounts:
    """Translate the seeds that have no final answer in the journal.

    Raises:
        MoseError: the seeds cannot be read, the journal is of another config or held by another process, the server is down, has
            another model or does not decode greedily.
        OSError: the disk is full; the journal holds every answer up to then.
    """
    journal = config.journal
    counts = TranslationCounts(total=_rows_of_task(config))
    lock = journal.with_name(f".{journal.name}.lock")
    with lock_file(lock, str(journal), "one `mose-data translate` per journal"), Journal(journal, config.identity()) as opened:
        shown = 0
        with show_progress("translate", counts.total, "functions", lambda: counts.line(config)) as advance:

            def show() -> None:
                nonlocal shown
                advance(counts.accounted() - shown)
                shown = counts.accounted()

            asyncio.run(_translate(config, opened, counts, show))
    return counts


def _rows_of_task(config: TranslateConfig) -> int:
    rows = count_seeds(Path(config.seeds))
    return len(range(config.task, rows, config.num_tasks))


async def _translate(config: TranslateConfig, journal: Journal, counts: TranslationCounts, show: Callable[[], None]) -> None:
    server = Server(config)
    try:
        await Translator(config, server, journal, counts, show).run()
    except PassingError as error:
        raise gone(config, error, counted(config.attempts, "request")) from None
    finally:
        await server.close()


def print_counts(config: TranslateConfig, counts: TranslationCounts) -> None:
    """Print what this run did and what is left."""
    print(f"journal: {config.journal}")
    print(f"{counted(counts.total, 'function')}: {counts.translated:,} translated now, {counts.done_before:,} done before")
    for reason, number in sorted(counts.exhausted.items()):
        print(f"{number:>11,} rejected for good: {reason.replace('_', ' ')}")
    for reason, number in sorted(counts.rejected.items()):
        print(f"{number:>11,} answers rejected: {reason.replace('_', ' ')}")
    if counts.huge:
        print(
            f"{counts.huge:>11,} not translated: more than {config.max_code_characters:,} characters, first {counts.first_huge}"
        )
    if counts.repeated:
        print(f"{counts.repeated:>11,} equal to an earlier row, whose translation they share")
    print(f"{counts.line(config)}; {counted(counts.requests, 'request')}")
    for name, number in sorted(counts.given_up.items()):
        print(f"{number:>11,} without an answer: {name}; run again to ask for them", file=sys.stderr)


def _add_arguments(parser: ArgumentParser) -> None:
    add_config(parser, TranslateConfig)


def _run(parsed: Namespace) -> int | None:
    config = read_config(parsed, TranslateConfig)
    counts = translate(config)
    print_counts(config, counts)
    return INCOMPLETE if counts.given_up else None


COMMAND = Command("Translate seeds into a second language by a model behind a server.", _add_arguments, _run)
