"""The files that a data set leaves out because `mose-data dedup` listed them as near-duplicates.

The lists are written once per data set as a table of 8 bytes per file, which every task maps. A file counts as listed by its
repository, path and content together: a copy of it elsewhere is judged for itself, and a file that has changed since stays.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_prep.filters.filters import NEAR_DUPLICATE, NEAR_EVALUATION
from data_prep.sources.repositories import SourceFile
from mose.errors import MoseError, first_line
from mose.files.atomic_file import atomic_write
from mose.files.json_file import parse_json
from mose.files.npy_file import read_npy
from mose.files.parquet_errors import PARQUET_ERRORS
from mose.files.storage import storage_path
from mose.seeding import UINT64_ARRAY, derive_key

EXPECTED = "a finished output of `mose-data dedup` over sources"
_COLUMNS = ("file", "path", "blob_id", "kept", "reason")
_OF_EVALUATION = "evaluation"
_BATCH_ROWS = 1 << 14


class NearDuplicates:
    """Which files are listed, by a 64-bit hash of each."""

    def __init__(self, duplicates_B: UINT64_ARRAY, evaluation_B: UINT64_ARRAY):
        """Hashes of the near-duplicates of other files, and of evaluation texts, both ascending."""
        self._by_reason = ((NEAR_EVALUATION, evaluation_B), (NEAR_DUPLICATE, duplicates_B))

    @staticmethod
    def read(path: Path) -> "NearDuplicates":
        """What `write_near_duplicates` wrote.

        Raises:
            MoseError: the file is missing or is no such table.
        """
        try:
            table = read_npy(path, mapped=True)
            count = int(table[0])
            return NearDuplicates(table[1 : count + 1], table[count + 1 :])
        except (OSError, ValueError, IndexError) as error:
            raise MoseError(
                f"{path}: not a readable table of near-duplicates: {error}; remove it, and `mose-data pack` writes it"
            ) from None

    @staticmethod
    def none() -> "NearDuplicates":
        """No file is listed."""
        return NearDuplicates(np.zeros(0, np.uint64), np.zeros(0, np.uint64))

    def reason(self, file: SourceFile) -> str:
        """`near_duplicate` or `near_evaluation` if the file is listed, else empty."""
        if not any(len(listed) for _, listed in self._by_reason):
            return ""
        key = np.uint64(_key(file.repository, file.path, file.blob_id))
        for reason, listed in self._by_reason:
            place = int(np.searchsorted(listed, key))
            if place < len(listed) and listed[place] == key:
                return reason
        return ""


def write_near_duplicates(path: Path, folders: Sequence[str]) -> None:
    """Write the table of the files that the lists of all `folders`, outputs of `mose-data dedup`, leave out.

    Raises:
        MoseError: a folder is no finished output of it, or lists rows of parquet files.
    """
    keys: dict[bool, list[UINT64_ARRAY]] = {False: [], True: []}
    for folder in folders:
        for batch in _listed(folder):
            removed = [entry for entry in batch if not entry[3]]
            for is_evaluation, found in keys.items():
                chosen = [_key(*entry[:3]) for entry in removed if (entry[4] == _OF_EVALUATION) == is_evaluation]
                found.append(np.array(chosen, np.uint64))
    duplicates, evaluation = (np.unique(np.concatenate([np.zeros(0, np.uint64), *keys[which]])) for which in (False, True))
    with atomic_write(path) as file:
        np.save(file, np.concatenate([np.array([len(duplicates)], np.uint64), duplicates, evaluation]), allow_pickle=False)


def lists_of_near_duplicates(folders: Sequence[str]) -> list[str]:
    """The fingerprint of each list: it changes with what was searched, and how.

    Raises:
        MoseError: a folder is no finished output of `mose-data dedup`.
    """
    return [str(_report(folder)["fingerprint"]) for folder in folders]


def _key(repository: str, path: str, blob_id: str) -> int:
    return derive_key("near_duplicate", repository, path, blob_id)


def _report(folder: str) -> dict[str, Any]:
    path = storage_path(folder) / "report.json"
    try:
        report = parse_json(path.read_bytes())
        return {name: report[name] for name in ("fingerprint", "parts")}
    except OSError as error:
        raise MoseError(f"{path}: near_duplicates: cannot be read: {error.strerror or error}; expected {EXPECTED}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise MoseError(f"{path}: near_duplicates: not a report: {first_line(error)}; expected {EXPECTED}") from None


def _listed(folder: str) -> Iterator[list[tuple[str, str, str, bool, str]]]:
    """Repository, path, blob id, whether the file is kept, and the reason, of all listed files in batches."""
    for number in range(int(_report(folder)["parts"])):
        path = storage_path(folder) / "groups" / f"part-{number:06d}.parquet"
        try:
            with path.open("rb") as stored:
                for batch in pq.ParquetFile(stored, pre_buffer=False).iter_batches(_BATCH_ROWS, columns=list(_COLUMNS)):
                    entries = list(zip(*(batch.column(name).to_pylist() for name in _COLUMNS), strict=True))
                    if any(entry[1] is None or entry[2] is None for entry in entries):
                        raise MoseError(
                            f"{path}: near_duplicates: path: is empty, as for rows of parquet files; expected {EXPECTED}"
                        )
                    yield entries
        except (*PARQUET_ERRORS, KeyError) as error:
            message = getattr(error, "strerror", None) or first_line(error)
            raise MoseError(f"{path}: near_duplicates: cannot be read: {message}; expected {EXPECTED}") from None
