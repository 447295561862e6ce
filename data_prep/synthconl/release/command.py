"""`mose-data synthconl`: joins seeds and translations, cuts near-duplicates, and writes parquet, statistics, page and card."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jsonargparse import ArgumentParser, Namespace

from data_prep.console import counted
from data_prep.synthconl.release.card import data_card
from data_prep.synthconl.release.config import ReleaseConfig
from data_prep.synthconl.release.duplicates import Duplicates, read_duplicates
from data_prep.synthconl.release.rows import FILE_NAME, SCHEMA, Row, Translations, draft_rows, joined_rows
from data_prep.synthconl.release.statistics import ReleaseStatistics, release_sections
from data_prep.tools.stats.page import stats_page
from mose.command import Command, add_config, read_config
from mose.config import to_plain
from mose.errors import MoseError
from mose.files.atomic_file import atomic_folder, named_errors, write_json, write_text
from mose.files.json_file import parse_json

STATISTICS_NAME, PAGE_NAME, CARD_NAME = "statistics.json", "index.html", "README.md"
_ROWS = 4096


def release(config: ReleaseConfig) -> ReleaseStatistics:
    """Write the folder; equal inputs give equal bytes.

    Raises:
        MoseError: an input cannot be read or does not fit the others, or no row is left.
        FileExistsError: the folder is there.
        OSError: the disk is full; nothing is left behind.
    """
    output = Path(config.output)
    dropped: Counter[str] = Counter()
    duplicates = read_duplicates(Path(config.duplicates)) if config.duplicates else None
    with atomic_folder(output) as folder:
        statistics = ReleaseStatistics(dropped)
        before: dict[str, Any] = {}
        if config.draft:
            draft = Path(config.draft)
            before = _read_statistics(draft / STATISTICS_NAME)
            dropped.update(before["dropped"])
            if duplicates is not None:
                duplicates.check_rows(pq.read_metadata(draft / FILE_NAME).num_rows, config.duplicates)
                splits = ((i, row["id"], row["split"]) for i, row in enumerate(draft_rows(draft / FILE_NAME)))
                duplicates.see_splits(splits, config.keep_one)
            tokens = before["tokens"]
            _write_rows(folder / FILE_NAME, draft_rows(draft / FILE_NAME), duplicates, statistics, config)
        else:
            translations = Translations(Path(config.translations), Path(config.seeds))
            tokens = dict(translations.tokens)
            rows = joined_rows(Path(config.seeds), translations, dropped)
            _write_rows(folder / FILE_NAME, rows, duplicates, statistics, config)
            translations.close()
        plain = {**statistics.to_plain(duplicates), "tokens": tokens, "config": to_plain(config)}
        write_json(folder / STATISTICS_NAME, plain)
        lines = [f"{counted(statistics.rows, 'triplet')} of text, function and translation."]
        write_text(folder / PAGE_NAME, stats_page(config.name, lines, [], release_sections(statistics)))
        write_text(folder / CARD_NAME, data_card(config.name, plain))
    return statistics


def _read_statistics(path: Path) -> dict[str, Any]:
    try:
        plain = parse_json(path.read_bytes())
        return {"dropped": dict(plain["dropped"]), "tokens": dict(plain["tokens"])}
    except (ValueError, LookupError, TypeError):
        raise MoseError(f"{path}: not the statistics of a draft; expected a folder of `mose-data synthconl`") from None


def _write_rows(
    path: Path, rows: Iterator[Row], duplicates: Duplicates | None, statistics: ReleaseStatistics, config: ReleaseConfig
) -> None:
    with named_errors(Path(config.output)), pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        waiting: list[Row] = []
        for number, row in enumerate(rows):
            member = None if duplicates is None else duplicates.of(number, row["id"])
            reason = duplicates.reason(number, row["id"], row["split"], config.keep_one) if duplicates is not None else ""
            if reason:
                statistics.dropped[reason] += 1
                continue
            statistics.add(row, None if member is None else member.group)
            waiting.append(row)
            if len(waiting) == _ROWS:
                writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
                waiting = []
        writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
    if not statistics.rows:
        left = ", ".join(f"{number:,} {name}" for name, number in sorted(statistics.dropped.items()))
        raise MoseError(f"{config.output}: no row is left ({left or 'no seeds'}); expected some")


def print_statistics(config: ReleaseConfig, statistics: ReleaseStatistics) -> None:
    """Print rows by split and what was left out."""
    for split, number in sorted(statistics.counts["split"].items()):
        print(f"{split}: {counted(number, 'row')} from {len(statistics.repositories[split]):,} repositories")
    for name, number in sorted(statistics.dropped.items()):
        print(f"{number:>11,} left out: {name.replace('_', ' ')}")
    languages = ", ".join(f"{name} {number:,}" for name, number in statistics.counts["language2"].most_common())
    print(f"target languages: {languages}")
    print(f"data set: {Path(config.output) / FILE_NAME}")


def _add_arguments(parser: ArgumentParser) -> None:
    add_config(parser, ReleaseConfig)


def _run(parsed: Namespace) -> None:
    config = read_config(parsed, ReleaseConfig)
    print_statistics(config, release(config))


COMMAND = Command("Write triplets of text, function and translation, with a data card.", _add_arguments, _run)
