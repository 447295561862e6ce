"""The rows of the data set: seeds joined with the answers of the journals, or those of a draft."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.synthconl.mining.seed_file import Seed, read_seeds
from data_prep.synthconl.translation.answer import OK
from data_prep.synthconl.translation.journal import PATTERN, Entry, parse_entry, read_entries, read_header
from mose.dataset.pairs import RELEASED_COLUMNS
from mose.errors import MoseError, first_line
from mose.files.atomic_file import file_sha256
from mose.files.parquet_errors import PARQUET_ERRORS

# The released data set's columns in its order, then where each row is from.
RELEASED = (
    "repository_name",
    "func_path_in_repository",
    "language2",
    "func2",
    "language1_CSN",
    "func1_CSN",
    "func_documentation_string",
    "func_code_url",
)
PROVENANCE = ("id", "split", "license", "server", "model", "prompt_version")
SCHEMA = pa.schema([(name, pa.string()) for name in (*RELEASED, *PROVENANCE)] + [("seed", pa.int64())])
FILE_NAME = "synthconl.parquet"
NOT_TRANSLATED, REPEATED = "not_translated", "repeated"
_ROWS = 4096
Row = dict[str, Any]


class Translations:
    """The journals of a folder: where the accepted answer to each seed stands, and how the others ended."""

    def __init__(self, folder: Path, seeds: Path):
        """Read the journals once; answers themselves stay on the disk.

        Raises:
            MoseError: there is no journal, one is damaged or of other seeds, or two are of different configs.
        """
        paths = sorted(folder.glob(PATTERN))
        if not paths:
            raise MoseError(f"{folder}: translations: no journal, expected a folder of `mose-data translate`")
        self._files = [path.open("rb") for path in paths]
        self._places: dict[str, tuple[int, int]] = {}
        self._rejected: dict[str, str] = {}
        self.tokens: Counter[str] = Counter()
        self.config = _common_config(paths, seeds)
        for number, path in enumerate(paths):
            start = read_header(path)[0]
            for end, entry in read_entries(path):
                self._add(entry, number, start)
                start = end

    def _add(self, entry: Entry, number: int, start: int) -> None:
        self.tokens["prompt"] += entry.prompt_tokens
        self.tokens["answer"] += entry.completion_tokens
        if entry.outcome == OK:
            self._places[entry.id] = (number, start)
        else:
            self._rejected[entry.id] = entry.outcome

    def of(self, identity: str) -> Entry | None:
        """The accepted answer to a seed, read from its journal."""
        if identity not in self._places:
            return None
        number, start = self._places[identity]
        file = self._files[number]
        file.seek(start)
        return parse_entry(file.readline(), f"{file.name}: offset {start}")

    def reason(self, identity: str) -> str:
        """Why a seed has no translation."""
        return f"rejected_{self._rejected[identity]}" if identity in self._rejected else NOT_TRANSLATED

    def close(self) -> None:
        """Close the journals."""
        for file in self._files:
            file.close()


def _common_config(paths: list[Path], seeds: Path) -> dict[str, str]:
    first: dict[str, str] = {}
    expected = {"seeds": file_sha256(seeds)[:16]}
    for path in paths:
        config = {name: value for name, value in read_header(path)[1].items() if name != "task"}
        for name, value in (first or expected).items():
            if config.get(name) != value:
                where = f"those of {seeds}" if name == "seeds" else f"{value!r} as in {paths[0].name}"
                raise MoseError(f"{path}: {name}: is {config.get(name)!r}, expected {where}")
        first = first or config
    return first


def joined_rows(seeds: Path, translations: Translations, dropped: Counter[str]) -> Iterator[Row]:
    """The rows of seeds that have a translation, in the order of the seeds; counts the others by reason.

    Raises:
        MoseError: the seeds file is damaged.
    """
    seen: set[str] = set()
    for seed in read_seeds(seeds):
        identity = seed.id
        entry = translations.of(identity)
        if entry is None:
            dropped[translations.reason(identity)] += 1
        elif identity in seen:
            dropped[REPEATED] += 1
        else:
            seen.add(identity)
            yield _row(seed, identity, entry, translations.config)


def _row(seed: Seed, identity: str, entry: Entry, config: dict[str, str]) -> Row:
    values = {
        "nl": seed.nl,
        "code_a": seed.code_a,
        "lang_a": seed.lang_a,
        "code_b": entry.code,
        "lang_b": entry.target,
        "repository": seed.repository,
        "path": seed.path,
    }
    return {
        **{RELEASED_COLUMNS[name]: value for name, value in values.items()},
        "func_code_url": seed.url,
        "id": identity,
        "split": seed.split,
        "license": seed.licence,
        "server": entry.server,
        "model": entry.model,
        "prompt_version": config.get("prompt_version", ""),
        "seed": int(config.get("seed", "0")),
    }


def draft_rows(path: Path) -> Iterator[Row]:
    """The rows of a draft's parquet file, in its order.

    Raises:
        MoseError: it cannot be read, or lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in SCHEMA.names if name not in file.schema_arrow.names]:
                raise MoseError(f"{path}: {missing[0]}: no such column; expected a draft of `mose-data synthconl`")
            for batch in file.iter_batches(_ROWS, columns=SCHEMA.names, use_threads=False):
                yield from batch.to_pylist()
    except PARQUET_ERRORS as error:
        raise MoseError(f"{path}: not a readable draft of `mose-data synthconl`: {first_line(error)}") from None
