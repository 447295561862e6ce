"""Reads the markers of finished tasks, many at a time, and checks them against the files that they list."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from data_prep.console import show_progress
from data_prep.execution.inputs import Inputs
from data_prep.execution.task_files import array_specification
from data_prep.pipeline.task_marker import TaskMarker, marker_path, read_marker
from data_prep.sources.registry import SourcesConfig, read_repository
from data_prep.sources.repositories import RepositoryRef
from mose.dataset.manifest import ShardEntry
from mose.dataset.row_index import INDEX_DTYPE, INDEX_OFFSET
from mose.errors import MoseError
from mose.files.atomic_file import file_sha256

# Reading a small file is mostly waiting, above all on shared file systems and object stores.
READERS = 16
Result = TypeVar("Result")


def in_threads(work: Callable[[int], Result], tasks: Iterable[int]) -> Iterator[Result]:
    """Results of `work` for each task number, in order; several run at a time."""
    with ThreadPoolExecutor(READERS) as executor:
        yield from executor.map(work, tasks)


def is_finished(dataset: Path, task: int, inputs: Inputs) -> bool:
    """Whether a task has a marker and the files that it lists.

    Raises:
        MoseError: the marker cannot be read, or has other inputs.
    """
    result = read_marker(marker_path(dataset, task))
    if result is None:
        return False
    _check_inputs(result, marker_path(dataset, task), inputs)
    return damage(dataset, result) is None


def mended(dataset: Path, task: int, refs: Sequence[RepositoryRef], sources: SourcesConfig) -> list[str]:
    """The repositories that a finished task left out as bad and that can be read now.

    Raises:
        MoseError: the marker cannot be read.
    """
    result = read_marker(marker_path(dataset, task))
    names = {bad.name for bad in result.bad_repositories} if result else set()
    return [ref.name for ref in refs if ref.name in names and _is_readable(ref, sources)]


def _is_readable(ref: RepositoryRef, sources: SourcesConfig) -> bool:
    try:
        for _ in read_repository(ref, sources):
            pass
    except (MoseError, OSError):
        return False
    return True


def read_results(dataset: Path, num_tasks: int, inputs: Inputs, *, checksums: bool = False) -> list[TaskMarker]:
    """The markers of all tasks; checks the sizes of their files, with `checksums` every byte.

    Raises:
        MoseError: tasks (in the format of SLURM's --array) or files are missing, or a marker has other inputs.
    """
    found: list[TaskMarker | None] = []
    with show_progress("reading markers", num_tasks, "tasks") as advance:
        for result in in_threads(lambda task: read_marker(marker_path(dataset, task)), range(num_tasks)):
            found.append(result)
            advance(1)
    missing = [task for task, result in enumerate(found) if result is None]
    if missing:
        raise MoseError(
            f"{dataset}: tasks: {len(missing)} of {num_tasks} have not finished; run them first: "
            f"--array={array_specification(missing)}"
        )
    results = [result for result in found if result is not None]
    for result in results:
        _check_inputs(result, marker_path(dataset, result.task), inputs)
    with show_progress("checking files", num_tasks, "tasks") as advance:
        for problem in in_threads(lambda task: damage(dataset, results[task], checksums=checksums), range(num_tasks)):
            if problem:
                raise MoseError(f"{problem}; run `mose-data pack` again")
            advance(1)
    return results


def damage(dataset: Path, result: TaskMarker, *, checksums: bool = False) -> str | None:
    """A sentence on the first file of a task that is missing or differs from its marker; None if there is none."""
    name = marker_path(dataset, result.task).name
    for entry in result.shards.values():
        for path, size, sha256 in _files(dataset, entry):
            if not path.is_file() or size not in (None, path.stat().st_size):
                return f"{path}: missing, or of another size than {name} says"
            if checksums and file_sha256(path) != sha256:
                return f"{path}: its SHA-256 is not the one that {name} says: damaged or replaced"
    return None


def _files(dataset: Path, entry: ShardEntry) -> list[tuple[Path, int | None, str]]:
    """Each file of a shard with its size (None if the marker does not have it) and SHA-256."""
    index_size = INDEX_OFFSET + entry.rows * INDEX_DTYPE.itemsize
    return [
        (entry.shard_in(dataset), entry.num_bytes, entry.sha256),
        (entry.index_in(dataset), index_size, entry.index_sha256),
        (entry.lineage_in(dataset), None, entry.lineage_sha256),
    ]


def _check_inputs(result: TaskMarker, path: Path, inputs: Inputs) -> None:
    if result.listing_fingerprint != inputs.sources:
        raise MoseError(
            f"{path}: was written when the sources held other repositories ({result.listing_fingerprint}, now {inputs.sources}); "
            "expected the same, or another output"
        )
    if result.config_fingerprint != inputs.config:
        raise MoseError(
            f"{path}: config_fingerprint is {result.config_fingerprint}, expected {inputs.config}: written with another config, "
            "tokenizer or list file; expected the same, or another output"
        )
