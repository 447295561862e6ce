"""The seeds file: functions with documentation, in the columns of a pairs file and a few more."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mose.dataset.pairs import TRAIN
from mose.errors import MoseError, first_line
from mose.files.atomic_file import atomic_write
from mose.files.parquet_errors import PARQUET_ERRORS

REQUIRED = ("nl", "code_a", "lang_a")
_ROWS = 4096


@dataclass(frozen=True)
class Seed:
    """One documented function; the names are those of `mose.dataset.pairs.Pair`, so fine-tuning reads the file, too."""

    nl: str
    """First paragraph of the documentation."""
    code_a: str
    lang_a: str
    repository: str = ""
    path: str = ""
    split: str = TRAIN
    name: str = ""
    """Name of the function."""
    url: str = ""
    """Where CodeSearchNet found it; empty for our sources."""
    licence: str = ""
    """SPDX ids joined with ` AND `, or the licence type where none was detected."""

    @property
    def id(self) -> str:
        """16 hexadecimal digits that depend on the text, the code and their place only, not on the row."""
        parts = (self.nl, self.code_a, self.lang_a, self.repository, self.path)
        digest = hashlib.blake2b(digest_size=8)
        for part in parts:
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()


_NAMES = tuple(field.name for field in fields(Seed))
# Empty, so that the file is also one of pairs without a second code.
_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", *_NAMES, "code_b", "lang_b")])


class SeedWriter:
    """Writes seeds in batches to a parquet file that appears when the `with` block ends without an error."""

    def __init__(self, path: Path):
        """Nothing is written before the block begins; errors are those of `atomic_write`."""
        self._atomic = atomic_write(path)
        self._waiting: list[dict[str, str]] = []

    def __enter__(self) -> "SeedWriter":
        self._parquet = pq.ParquetWriter(self._atomic.__enter__(), _SCHEMA, compression="zstd")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        with contextlib.suppress(OSError) if kind is not None else contextlib.nullcontext():
            self._parquet.close()
        self._atomic.__exit__(kind, error, trace)

    def add(self, seed: Seed) -> None:
        """Add one row."""
        row = {name: getattr(seed, name) for name in _NAMES}
        self._waiting.append({"id": seed.id, **row, "code_b": "", "lang_b": ""})
        if len(self._waiting) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        self._parquet.write_table(pa.Table.from_pylist(self._waiting, _SCHEMA))
        self._waiting = []


def count_seeds(path: Path) -> int:
    """Rows of a seeds file; errors as in `read_seeds`."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def read_seeds(path: Path) -> Iterator[Seed]:
    """The seeds of a parquet file, in its order, in bounded memory. Columns other than `REQUIRED` may be missing.

    Raises:
        MoseError: not a readable parquet file, a column is missing or not text, a text, code or language is empty.
    """
    with _opened(path) as file:
        names = [name for name in _NAMES if name in file.schema_arrow.names]
        row = 0
        batches = file.iter_batches(_ROWS, columns=names, use_threads=False)
        while (batch := _next(path, batches)) is not None:
            for values in batch:
                empty = next((name for name in REQUIRED if not (values[name] or "").strip()), None)
                if empty is not None:
                    raise MoseError(f"{path}: {empty}: row {row} is empty, expected text")
                yield Seed(**{name: value for name, value in values.items() if value is not None})
                row += 1


def _next(path: Path, batches: Iterator[Any]) -> list[dict[str, Any]] | None:
    # A parquet file is decoded while it is read, so that damage shows in any batch.
    try:
        batch = next(batches, None)
        return None if batch is None else batch.to_pylist()
    except PARQUET_ERRORS as error:
        raise MoseError(f"{path}: not a readable parquet file of seeds: {first_line(error)}") from None


def _opened(path: Path) -> Any:
    try:
        file = pq.ParquetFile(path)
    except PARQUET_ERRORS as error:
        raise MoseError(f"{path}: not a readable parquet file of seeds: {first_line(error)}") from None
    schema = file.schema_arrow
    missing = [name for name in REQUIRED if name not in schema.names]
    if missing:
        file.close()
        raise MoseError(f"{path}: {missing[0]}: no such column; expected {', '.join(REQUIRED)}, as `mose-data seeds` writes them")
    for name in _NAMES:
        kind = schema.field(name).type if name in schema.names else pa.string()
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)):
            file.close()
            raise MoseError(f"{path}: {name}: column of type {kind}, expected string")
    return file
