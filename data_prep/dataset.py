"""`mose-data pack` and `finish`: the tasks of a data set that are missing, in one or several processes, then its manifest."""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from data_prep.config import PackConfig, content_fields, content_fingerprint
from data_prep.dataset_statistics import merge_statistics
from data_prep.filters import KEPT, FilterCounts
from data_prep.progress import show_progress
from data_prep.records import RepositoryRef
from data_prep.sources.source import list_repositories
from data_prep.split_writer import lineage_path, shard_path
from data_prep.task import TaskResult, deal_repositories, listing_fingerprint, marker_path, read_marker, run_task
from mose.atomic_file import TEMPORARY_MARK, atomic_write
from mose.config import load_config, save_config
from mose.errors import MoseError
from mose.manifest import MANIFEST_NAME, SPLITS, Manifest, write_manifest
from mose.tokenizer import HUGGING_FACE_NAME, SENTENCEPIECE_NAME, SentencePieceTokenizer, Tokenizer, load_tokenizer

CONFIG_NAME = "config.yaml"
# So many missing tasks are named in an error.
_NAMED_TASKS = 5


def pack_dataset(config: PackConfig, task: int | None = None) -> Manifest | None:
    """Run the tasks of a data set that have not finished, then write its manifest; with `task`, run that one only.

    A folder that holds part of the same data set is completed; the bytes do not depend on how often it was interrupted, nor on
    `num_workers`. Returns the manifest, None with `task`.

    Raises:
        MoseError: the folder holds something else, the sources changed since, a source or the tokenizer cannot be read, or no
            row came out (then nothing is left in the folder).
    """
    config = config.resolve()
    if task is not None and not 0 <= task < config.num_tasks:
        raise MoseError(f"task: is {task}, expected 0 to {config.num_tasks - 1} (num_tasks is {config.num_tasks})")
    tokenizer = load_tokenizer(Path(config.tokenizer))
    refs = list_repositories(config.sources)
    dataset, listing = Path(config.output), listing_fingerprint(refs)
    _begin(config, tokenizer)
    wanted = range(config.num_tasks) if task is None else [task]
    missing = [number for number in wanted if not _has_finished(dataset, number, listing)]
    _remove_leftovers(dataset, missing, with_manifest=task is None)
    dealt = deal_repositories(refs, config)
    _run_tasks(config, {number: dealt[number] for number in missing}, listing)
    if task is not None:
        return None
    results = _read_results(dataset, config)
    if not any(result.shards for result in results):
        _remove_empty(dataset, config)
    return _write_manifest(dataset, config, results)


def finish(dataset: Path) -> Manifest:
    """Write the manifest of a data set whose tasks have all run.

    Raises:
        MoseError: a task is missing, was run with another config or on other sources, or its shard is not there; or no task
            has a row.
    """
    if not (dataset / CONFIG_NAME).is_file():
        raise MoseError(f"{dataset}: holds no {CONFIG_NAME}; expected a folder that `mose-data pack` has begun")
    config = load_config(PackConfig, dataset / CONFIG_NAME).resolve()
    results = _read_results(dataset, config)
    return _write_manifest(dataset, config, results)


def _begin(config: PackConfig, tokenizer: Tokenizer) -> None:
    """Write the config and the tokenizer into the folder, or check that its finished tasks had the same."""
    dataset = Path(config.output)
    if dataset.exists() and not dataset.is_dir():
        raise MoseError(f"{dataset}: output: is a file, expected a folder")
    path = dataset / CONFIG_NAME
    has_results = any(marker_path(dataset, 0).parent.glob("task-*.json"))
    if path.is_file():
        there = load_config(PackConfig, path)
        if has_results:
            _check_same(there, config, path)
        elif there != config:
            save_config(config, path)
    elif dataset.exists() and any(not entry.name.endswith(TEMPORARY_MARK) for entry in dataset.iterdir()):
        raise MoseError(f"{dataset}: output: holds files but no {CONFIG_NAME}; expected a new folder or a data set to complete")
    else:
        save_config(config, path)
    _copy_tokenizer(dataset, tokenizer, may_replace=not has_results)


def _copy_tokenizer(dataset: Path, tokenizer: Tokenizer, *, may_replace: bool) -> None:
    found = [dataset / name for name in (SENTENCEPIECE_NAME, HUGGING_FACE_NAME) if (dataset / name).is_file()]
    there = load_tokenizer(found[0]).fingerprint() if found else None
    if there == tokenizer.fingerprint():
        return
    if there and not may_replace:
        raise MoseError(
            f"{tokenizer.path}: tokenizer: has fingerprint {tokenizer.fingerprint()}, but {dataset} was begun with {there}; "
            "expected the same tokenizer, or another output"
        )
    for path in found:
        path.unlink()
    name = SENTENCEPIECE_NAME if isinstance(tokenizer, SentencePieceTokenizer) else HUGGING_FACE_NAME
    with atomic_write(dataset / name) as file:
        file.write(tokenizer.path.read_bytes())


def _check_same(there: PackConfig, asked: PackConfig, path: Path) -> None:
    difference = _first_difference(content_fields(there), content_fields(asked))
    if difference:
        name, old, new = difference
        raise MoseError(
            f"{path}: {name}: is {old!r} in this data set, {new!r} was asked for; expected the same, or another output"
        )


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    for name, value in new.items():
        if isinstance(value, dict):
            inside = _first_difference(old[name], value, f"{prefix}{name}.")
            if inside:
                return inside
        elif old[name] != value:
            return prefix + name, old[name], value
    return None


def _has_finished(dataset: Path, task: int, listing: str) -> bool:
    path = marker_path(dataset, task)
    result = read_marker(path)
    if result and result.listing_fingerprint != listing:
        raise MoseError(f"{path}: was written when the sources held other repositories; expected the same, or another output")
    return result is not None and _damaged_shard(dataset, result) is None


def _damaged_shard(dataset: Path, result: TaskResult) -> Path | None:
    """The first file of a task that is missing, or a shard of another size than its marker says."""
    for entry in result.shards.values():
        shard, lineage = dataset / entry.path, dataset / entry.lineage_path
        if not shard.is_file() or shard.stat().st_size != entry.num_bytes:
            return shard
        if not lineage.is_file():
            return lineage
    return None


def _remove_leftovers(dataset: Path, tasks: Iterable[int], *, with_manifest: bool) -> None:
    """Remove what a killed run was writing; other tasks may be running elsewhere, so theirs stay."""
    paths = [dataset / name(split, task) for task in tasks for split in SPLITS for name in (shard_path, lineage_path)]
    paths += [marker_path(dataset, task) for task in tasks]
    if with_manifest:
        paths += [dataset / MANIFEST_NAME, dataset / CONFIG_NAME]
    for path in paths:
        for leftover in path.parent.glob(f".{path.name}.*{TEMPORARY_MARK}"):
            leftover.unlink(missing_ok=True)


def _run_tasks(config: PackConfig, tasks: dict[int, list[RepositoryRef]], listing: str) -> None:
    total = sum(len(refs) for refs in tasks.values())
    with show_progress("packing", total, "repositories") as advance:
        if config.num_workers == 1 or len(tasks) <= 1:
            for task, refs in tasks.items():
                run_task(config, task, refs, listing, advance)
        else:
            _run_in_processes(config, tasks, listing, advance)


def _run_in_processes(
    config: PackConfig, tasks: dict[int, list[RepositoryRef]], listing: str, advance: Callable[[int], None]
) -> None:
    workers = min(config.num_workers, len(tasks))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent) as executor:
        futures = {executor.submit(run_task, config, task, refs, listing): len(refs) for task, refs in tasks.items()}
        try:
            for future in as_completed(futures):
                future.result()
                advance(futures[future])
        except BrokenProcessPool:
            raise MoseError(
                "num_workers: a worker process was killed, perhaps for its memory; run the command again to go on, with fewer"
            ) from None
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _follow_parent() -> None:
    """End this worker when the command that started it is killed; it would wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read_results(dataset: Path, config: PackConfig) -> list[TaskResult]:
    """The results of all tasks.

    Raises:
        MoseError: a task is missing, its files are, or it belongs to another config or other sources.
    """
    expected = content_fingerprint(config, load_tokenizer(dataset))
    found = [read_marker(marker_path(dataset, task)) for task in range(config.num_tasks)]
    missing = [str(task) for task, result in enumerate(found) if result is None]
    if missing:
        names = ", ".join(missing[:_NAMED_TASKS]) + (", ..." if len(missing) > _NAMED_TASKS else "")
        raise MoseError(f"{dataset}: tasks: {len(missing)} of {config.num_tasks} have not finished ({names}); run them first")
    results = [result for result in found if result is not None]
    for result in results:
        path = marker_path(dataset, result.task)
        damaged = _damaged_shard(dataset, result)
        if damaged:
            raise MoseError(f"{damaged}: missing, or of another size than {path.name} says; run `mose-data pack` again")
        if result.config_fingerprint != expected:
            raise MoseError(f"{path}: config_fingerprint is {result.config_fingerprint}, expected {expected} of {CONFIG_NAME}")
        if result.listing_fingerprint != results[0].listing_fingerprint:
            raise MoseError(f"{path}: saw other repositories than task 0; expected the same sources for every task")
    return results


def _write_manifest(dataset: Path, config: PackConfig, results: Sequence[TaskResult]) -> Manifest:
    if not any(result.shards for result in results):
        raise MoseError(_no_rows(results))
    tokenizer = load_tokenizer(dataset)
    manifest = Manifest(
        tokenizer_fingerprint=tokenizer.fingerprint(),
        config_fingerprint=content_fingerprint(config, tokenizer),
        vocabulary_size=tokenizer.vocabulary_size,
        sequence_length=config.packing.sequence_length,
        splits={split: tuple(result.shards[split] for result in results if split in result.shards) for split in SPLITS},
        statistics=merge_statistics(results, config.packing),
    )
    write_manifest(dataset, manifest)
    return manifest


def _no_rows(results: Sequence[TaskResult]) -> str:
    reasons = FilterCounts.merge([result.filters for result in results]).reasons
    files = {name: tally.files for name, tally in reasons.items() if tally.files}
    told = ", ".join(f"{name} {count}" for name, count in files.items() if name != KEPT) or "no files at all"
    kept = f"; {files[KEPT]} files passed but filled no row" if KEPT in files else ""
    repositories = sum(result.repositories for result in results)
    return f"sources: none of {repositories} repositories gave a row; expected usable files, dropped were: {told}{kept}"


def _remove_empty(dataset: Path, config: PackConfig) -> None:
    """Remove what a data set without rows consists of, so that the next run reads its sources again."""
    for task in range(config.num_tasks):
        marker_path(dataset, task).unlink(missing_ok=True)
    for name in (CONFIG_NAME, SENTENCEPIECE_NAME, HUGGING_FACE_NAME):
        (dataset / name).unlink(missing_ok=True)
    for folder in (marker_path(dataset, 0).parent, dataset):
        folder.rmdir()
