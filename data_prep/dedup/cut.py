"""The last two phases: verified pairs to groups of rows, then the rows without duplicates, and the reason for each removed one.

`groups` is one task, because a chain of near-duplicates may run through the whole input; it reads numbers only. `cut` reads the
rows again, each task its own.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.dedup.inputs import Plan, RepositoryFiles, RowRange
from data_prep.dedup.minhash.groups import components, kept_members
from data_prep.dedup.phase import CUT, GROUPS, SIGNATURES, VERIFY, Run
from data_prep.dedup.storage.documents import NO_ROW, TASK_BITS, place_of, task_of
from data_prep.dedup.verification import Similarities
from data_prep.pipeline.task_marker import TaskProgress
from mose.errors import MoseError
from mose.files.atomic_file import atomic_write
from mose.files.npy_file import read_npy
from mose.seeding import UINT64_ARRAY

KEPT, EXACT, NEAR, LINKED, EVALUATION = REASONS = (
    "kept",
    "exact_duplicate",
    "near_duplicate",
    "linked_duplicate",
    "evaluation",
)
"""Why a row of a group was kept or removed: the kept one; equal to it after normalisation; at least as similar as the threshold;
linked to it by a chain of near-duplicates only; a near-duplicate of an evaluation text."""
GROUP_DTYPE = np.dtype([("row", "<u8"), ("group", "<u8"), ("kept", "<u8"), ("is_contaminated", "?")])
"""A row, the first row of its group, and the row that stands for it: the kept one, or the evaluation text."""
GROUP_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        *((name, pa.string()) for name in ("file", "path", "blob_id")),
        ("row", pa.int64()),
        ("group", pa.int64()),
        ("kept", pa.bool_()),
        ("kept_id", pa.int64()),
        ("jaccard", pa.float64()),
        ("column", pa.string()),
        ("reason", pa.string()),
        ("evaluation", pa.string()),
    ]
)


def write_groups(run: Run, observe: Callable[[TaskProgress], None]) -> None:
    """Run the one task of the phase: the group of every row that has a near-duplicate, and which row is kept.

    Raises:
        MoseError: verified pairs or signatures are missing or damaged.
    """
    numbering, texts = run.numbering(), run.texts()
    parts = [file.read(0, 1 << 64) for file in run.pairs(VERIFY)]
    first, second = (numbering.row_of(np.concatenate([part[side] for part in parts])) for side in (0, 1))
    swapped = numbering.is_evaluation(first)
    first, second = np.where(swapped, second, first), np.where(swapped, first, second)
    is_evaluation = numbering.is_evaluation(second)
    rows = np.unique(np.concatenate((first, second[~is_evaluation])))
    observe(TaskProgress(rows=len(rows)))
    places = [np.searchsorted(rows, side[~is_evaluation]) for side in (first, second)]
    groups = components(places[0], places[1], len(rows))
    contaminated, firsts = np.unique(first[is_evaluation], return_index=True)
    is_contaminated = np.isin(rows, contaminated)
    characters = [texts.field(numbering.document_of(rows, column), "characters") for column in range(run.config.num_columns)]
    sizes = np.sum(np.array(characters, np.int64), axis=0)
    kept = kept_members(groups, ~is_contaminated, sizes, run.config.keep)
    table = np.zeros(len(rows), GROUP_DTYPE)
    table["row"], table["group"], table["is_contaminated"] = rows, rows[groups], is_contaminated
    table["kept"] = np.where(kept >= 0, rows[np.maximum(kept, 0)], NO_ROW) if len(rows) else NO_ROW
    table["kept"][is_contaminated] = second[is_evaluation][firsts]
    path = run.part(GROUPS, 0, "npy")
    with atomic_write(path) as file:
        np.save(file, table, allow_pickle=False)
    counts = {"rows": len(rows), "groups": len(np.unique(groups)), "largest": int(np.bincount(groups).max(initial=0))}
    run.finish(GROUPS, 0, counts, [path], [])


def cut_rows(
    run: Run, plan: Plan, task: int, inputs: RowRange | RepositoryFiles, observe: Callable[[TaskProgress], None]
) -> None:
    """Run one task: the groups' table of its rows, and for parquet inputs the rows that stay.

    Raises:
        MoseError: groups, signatures or texts are missing or damaged, or an input cannot be read.
    """
    path = run.part(GROUPS, 0, "npy")
    run.markers(GROUPS)
    try:
        table = read_npy(path, mapped=True)
    except ValueError as error:
        raise MoseError(f"{path}: not a table of groups: {error}; remove its marker, and it is written again") from None
    low, high = (np.searchsorted(table["row"], np.uint64((task + more) << TASK_BITS)) for more in (0, 1))
    own = np.array(table[low:high])
    entries = _Entries(run, plan).of(own, observe)
    files = [run.output / "groups" / f"part-{task:06d}.parquet"]
    with atomic_write(files[0]) as file:
        pq.write_table(pa.Table.from_pylist(entries, GROUP_SCHEMA), file, compression="zstd")
    removed = np.sort(place_of(own["row"][[not entry["kept"] for entry in entries]]))
    if isinstance(inputs, RowRange):
        files.append(run.output / "rows" / f"part-{task:06d}.parquet")
        _write_rows(files[1], inputs, removed, plan)
    counts = {"removed": len(removed), **dict(Counter(str(entry["reason"]) for entry in entries))}
    run.finish(CUT, task, counts, files, [])


class _Entries:
    """Builds the groups' table of a task."""

    def __init__(self, run: Run, plan: Plan):
        self._run, self._plan = run, plan
        self._numbering = run.numbering()
        texts = run.texts()
        self._similarities = Similarities(texts, run.config.memory_bytes // 4)
        self._origins: dict[int, dict[int, tuple[str, str, str]]] = {}
        self._columns = run.config.columns if run.config.inputs else ("text",)

    def of(self, own: NDArray[np.void], observe: Callable[[TaskProgress], None]) -> list[dict[str, Any]]:
        """The entry of each row of a group."""
        ids, groups = (self._numbering.input_number(own[name]).tolist() for name in ("row", "group"))
        entries = []
        for number, (record, row_id, group) in enumerate(zip(own, ids, groups, strict=True)):
            row, other = int(record["row"]), int(record["kept"])
            entry: dict[str, Any] = {"id": row_id, "group": group, "kept": row == other, **self._place_of(row, row_id)}
            entry["reason"] = KEPT
            if not entry["kept"]:
                jaccard, entry["column"] = self._nearest(row, other)
                entry["jaccard"] = jaccard
                entry["reason"] = EXACT if jaccard == 1.0 else NEAR if jaccard >= self._run.config.threshold else LINKED
                if record["is_contaminated"]:
                    entry["reason"] = EVALUATION
                    entry["evaluation"] = " ".join(self._origin(other)[:2])
                else:
                    entry["kept"] = entry["reason"] == LINKED and self._run.config.chains == "keep"
                    entry["kept_id"] = int(self._numbering.input_number(np.array([other], np.uint64))[0])
            entries.append(entry)
            observe(TaskProgress(rows=number + 1))
        return entries

    def _nearest(self, row: int, other: int) -> tuple[float, str]:
        """The highest similarity of two rows in any column, and that column."""
        rows: UINT64_ARRAY = np.array([row, other], np.uint64)
        pairs = [self._numbering.document_of(rows, column).tolist() for column in range(len(self._columns))]
        similarities = [self._similarities.of(*pair) for pair in pairs]
        best = int(np.argmax(similarities))
        return similarities[best], self._columns[best]

    def _place_of(self, row: int, row_id: int) -> dict[str, Any]:
        if self._plan.files:
            file = next(file for file in self._plan.files if file.first <= row_id < file.first + file.rows)
            return {"file": file.path, "row": row_id - file.first}
        name, path, blob_id = self._origin(row)
        return {"file": name, "path": path, "blob_id": blob_id}

    def _origin(self, row: int) -> tuple[str, str, str]:
        number = np.array([row], np.uint64)
        task, place = int(task_of(number)[0]), int(place_of(number)[0])
        if task not in self._origins:
            table = pq.read_table(self._run.part(SIGNATURES, task, "origins"))
            columns = [table.column(name).to_pylist() for name in ("place", "name", "path", "blob_id")]
            self._origins[task] = {entry[0]: entry[1:] for entry in zip(*columns, strict=True)}
        return self._origins[task][place]


def _write_rows(path: Path, inputs: RowRange, removed: NDArray[np.int64], plan: Plan) -> None:
    """The rows of a range whose places are not in `removed` (ascending), with all their columns."""
    schema = pq.read_schema(plan.files[0].path) if not inputs.files else None
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(atomic_write(path))
        writer: Any = stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd")) if schema else None
        place = 0
        for table in inputs.tables():
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
            places = np.arange(place, place + len(table))
            writer.write_table(table.filter(pa.array(~np.isin(places, removed))))
            place += len(table)
