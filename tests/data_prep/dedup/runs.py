"""Tables of tests with planted near-duplicates, and what a run leaves, read back."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.dedup.config import DedupConfig
from mose.files.atomic_file import file_sha256
from tests.data_prep.dedup.documents import changed, code

WORDS = 80


def planted_rows() -> list[dict[str, Any]]:
    """40 rows: 0, 10, 20, 30 are near-duplicates in column a; 5 and 6 equal but for layout in b; 33 has empty texts."""
    rows = [{"number": n, "a": code(n, WORDS), "b": code(1000 + n, WORDS), "more": [n, n + 1]} for n in range(40)]
    for number in (10, 20, 30):
        rows[number]["a"] = changed(str(rows[0]["a"]), 2, number)
    rows[6]["b"] = str(rows[5]["b"]).replace(" ", "\n\t ")
    rows[33]["a"], rows[33]["b"] = "", None
    # A row that is near to 5 in the one column and to 12 in the other: 12 is linked to 5 by it alone.
    rows[7]["b"], rows[7]["a"] = changed(str(rows[5]["b"]), 2), str(rows[12]["a"])
    return rows


def write_inputs(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """The rows in two parquet files with small row groups."""
    paths = [folder / "one.parquet", folder / "two.parquet"]
    for path, part in zip(paths, (rows[:23], rows[23:]), strict=True):
        pq.write_table(pa.Table.from_pylist(part), path, row_group_size=5)
    return list(map(str, paths))


def make_config(folder: Path, **more: Any) -> DedupConfig:
    """A run over the planted rows, in three tasks."""
    inputs = tuple(write_inputs(folder, planted_rows()))
    values = {"inputs": inputs, "columns": ("a", "b"), "output": str(folder / "result"), "num_tasks": 3, **more}
    return DedupConfig(**values)


def read_table(config: DedupConfig, name: str) -> list[dict[str, Any]]:
    """The rows of `groups` or `rows`, of all tasks in their order."""
    parts = sorted((Path(config.output) / name).glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def checksums(config: DedupConfig) -> dict[str, str]:
    """SHA-256 of every file of the result but the config, which names the folder."""
    output = Path(config.output)
    names = [path for path in output.rglob("*") if path.is_file() and path.name != "config.yaml"]
    return {str(path.relative_to(output)): file_sha256(path) for path in names}
