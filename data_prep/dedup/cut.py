"""The last phase: each task reads its rows again, and writes those that stay, and why the others do not."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.dedup.inputs import Plan, RepositoryFiles, RowRange
from data_prep.dedup.phase import CUT, GROUPS, SIGNATURES, Run
from data_prep.dedup.storage.documents import TASK_BITS, place_of, task_of
from data_prep.dedup.storage.origins import read_origins
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
linked to it by a chain of near-duplicates only (with `chains: remove`); a near-duplicate of an evaluation text."""
_BATCH_ROWS = 1 << 13
_GROUP_BYTES = 1 << 25
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
    own = table[low:high]
    files = [run.output / "groups" / f"part-{task:06d}.parquet"]
    reasons = Counter[str]()
    is_removed = np.zeros(len(own), np.bool_)
    with atomic_write(files[0]) as file, pq.ParquetWriter(file, GROUP_SCHEMA, compression="zstd") as writer:
        entries = _Entries(run, plan, task).of(own)
        for start in range(0, len(own), _BATCH_ROWS):
            batch = list(itertools.islice(entries, _BATCH_ROWS))
            writer.write_table(pa.Table.from_pylist(batch, GROUP_SCHEMA))
            reasons.update(str(entry["reason"]) for entry in batch)
            is_removed[start : start + len(batch)] = [not entry["kept"] for entry in batch]
            observe(TaskProgress(rows=start + len(batch)))
    if isinstance(inputs, RowRange):
        files.append(run.output / "rows" / f"part-{task:06d}.parquet")
        _write_rows(files[1], inputs, place_of(own["row"][is_removed]), plan)
    run.finish(CUT, task, {"removed": int(is_removed.sum()), **reasons}, files, [])


class _Entries:
    """Builds the groups' table of a task."""

    def __init__(self, run: Run, plan: Plan, task: int):
        self._run, self._plan, self._task = run, plan, task
        self._numbering = run.numbering()
        self._similarities = Similarities(run.texts(), run.config.memory_bytes // 4)
        self._columns = run.config.columns if run.config.inputs else ("text",)
        self._evaluation: dict[int, list[str]] = {}

    def of(self, own: NDArray[np.void]) -> Iterator[dict[str, Any]]:
        """The entry of each row of a group, ascending by row."""
        files = None if self._plan.files else read_origins(self._origins_of(self._task), place_of(own["row"]))
        for start in range(0, len(own), _BATCH_ROWS):
            part = own[start : start + _BATCH_ROWS]
            rows, kept = part["row"].tolist(), part["kept"].tolist()
            ids, groups = (self._numbering.input_number(part[name]).tolist() for name in ("row", "group"))
            for row, other, row_id, group, is_text in zip(rows, kept, ids, groups, part["is_contaminated"].tolist(), strict=True):
                entry: dict[str, Any] = {"id": row_id, "group": group, "kept": row == other, "reason": KEPT}
                if files is not None:
                    entry["file"], entry["path"], entry["blob_id"] = next(files)
                else:
                    entry |= self._place_of(row_id)
                yield entry if row == other else entry | self._why_removed(row, other, is_text)

    def _why_removed(self, row: int, other: int, is_text: bool) -> dict[str, Any]:
        jaccard, column = self._nearest(row, other)
        found: dict[str, Any] = {"jaccard": jaccard, "column": column}
        if is_text:
            return {**found, "reason": EVALUATION, "evaluation": self._evaluation_text(other)}
        reason = EXACT if jaccard == 1.0 else NEAR if jaccard >= self._run.config.threshold else LINKED
        return {**found, "reason": reason, "kept_id": int(self._numbering.input_number(np.array([other], np.uint64))[0])}

    def _nearest(self, row: int, other: int) -> tuple[float, str]:
        """The highest similarity of two rows in any column, and that column."""
        rows: UINT64_ARRAY = np.array([row, other], np.uint64)
        pairs = [self._numbering.document_of(rows, column).tolist() for column in range(len(self._columns))]
        similarities = [self._similarities.of(*pair) for pair in pairs]
        best = int(np.argmax(similarities))
        return similarities[best], self._columns[best]

    def _place_of(self, row_id: int) -> dict[str, Any]:
        file = next(file for file in self._plan.files if file.first <= row_id < file.first + file.rows)
        return {"file": file.path, "row": row_id - file.first}

    def _evaluation_text(self, row: int) -> str:
        """Evaluation file and example of an evaluation text; those of a task are read when the first is asked for."""
        number: UINT64_ARRAY = np.array([row], np.uint64)
        task, first = int(task_of(number)[0]), int(self._numbering.rows_T[task_of(number)[0]])
        if task not in self._evaluation:
            texts = self._run.markers(SIGNATURES)[task].counts["evaluation_texts"]
            origins = read_origins(self._origins_of(task), np.arange(first, first + texts))
            self._evaluation[task] = [f"{name} {example}" for name, example, _ in origins]
        return self._evaluation[task][int(place_of(number)[0]) - first]

    def _origins_of(self, task: int) -> Path:
        return self._run.part(SIGNATURES, task, "origins")


def _write_rows(path: Path, inputs: RowRange, removed: NDArray[np.int64], plan: Plan) -> None:
    """The rows of a range whose places are not in `removed`, with all their columns."""
    stays = np.ones(inputs.last - inputs.first, np.bool_)
    stays[removed] = False
    schema = pq.read_schema(plan.files[0].path) if not inputs.files else None
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(atomic_write(path))
        writer: Any = stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd")) if schema else None
        place = 0
        waiting: list[pa.Table] = []
        for table in inputs.tables():
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
            waiting.append(table.filter(pa.array(stays[place : place + len(table)])))
            place += len(table)
            # Each write is a row group, which costs a reader time; together they stay far below `memory_bytes`.
            if sum(map(len, waiting)) >= _BATCH_ROWS or sum(part.nbytes for part in waiting) >= _GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
