"""Finished parts of vectors on disk, and the files that are made of all of them.

Letters: E exits, R rows, D width.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.embedding.encoder import Vectors
from mose.errors import MoseError
from mose.files.atomic_file import atomic_write
from mose.files.npy_file import read_npy


class Parts:
    """The folder in which finished parts wait for the last one; each appears whole or not at all."""

    def __init__(self, folder: Path, exits: Sequence[int], rows: int, part_rows: int, width: int):
        self.folder, self.exits, self.width = folder, exits, width
        self.lengths = [min(part_rows, rows - start) for start in range(0, rows, part_rows)]

    def path(self, number: int) -> Path:
        """File of a part."""
        return self.folder / f"part-{number:06d}.npy"

    def has(self, number: int) -> bool:
        """Whether a part is finished; a damaged file counts as none and is made anew."""
        try:
            return read_npy(self.path(number), mapped=True).shape == self._shape(number)
        except (OSError, ValueError):
            return False

    def write(self, number: int, tables: dict[int, Vectors]) -> None:
        """Keep the tables [R, D] of a part, by exit."""
        with atomic_write(self.path(number)) as file:
            np.save(file, np.stack([tables[layer] for layer in self.exits]))

    def read(self) -> Iterator[Vectors]:
        """The finished parts [E, R, D] in their order."""
        for number in range(len(self.lengths)):
            part = read_npy(self.path(number))
            if part.shape != self._shape(number):
                raise MoseError(f"{self.path(number)}: shape {part.shape}, expected {self._shape(number)}; remove the file")
            yield part

    def _shape(self, number: int) -> tuple[int, int, int]:
        return (len(self.exits), self.lengths[number], self.width)


def output_files(output: Path, exits: Sequence[int]) -> list[Path]:
    """The files that hold the vectors: one, or one per exit where a .npy has several."""
    if output.suffix == ".parquet" or len(exits) == 1:
        return [output]
    return [output.with_suffix(f".exit_{layer:02d}.npy") for layer in exits]


def write_npy(output: Path, parts: Parts, ids: Iterator[str]) -> None:
    """Write [R, D] for each exit, and the ids, part by part: no table is in memory as a whole."""
    rows = sum(parts.lengths)
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, parts.width)}
    for place, path in enumerate(output_files(output, parts.exits)):
        with atomic_write(path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part_ERD in parts.read():
                file.write(np.ascontiguousarray(part_ERD[place], dtype="<f4").tobytes())
    with atomic_write(output.with_suffix(".ids.jsonl")) as file:
        for each in ids:
            file.write(json.dumps(each).encode() + b"\n")


def write_parquet(output: Path, parts: Parts, ids: Iterator[str]) -> None:
    """Write the columns `id` and `exit_04`, ...: one row group per part."""
    vector = pa.list_(pa.float32(), parts.width)
    schema = pa.schema([("id", pa.string()), *((f"exit_{layer:02d}", vector) for layer in parts.exits)])
    with atomic_write(output) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for part_ERD in parts.read():
            names = pa.array([next(ids) for _ in range(part_ERD.shape[1])], pa.string())
            columns = [pa.FixedSizeListArray.from_arrays(pa.array(table_RD.ravel()), parts.width) for table_RD in part_ERD]
            writer.write_table(pa.Table.from_arrays([names, *columns], schema=schema))
