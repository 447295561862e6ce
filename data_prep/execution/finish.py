"""`mose-data finish`: the tasks of a data set merged into its manifest, when all have run and their files are there."""

import time
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from data_prep.execution.inputs import CONFIG_NAME, Inputs, inputs_path, read_config_of, read_inputs, remove_beginning
from data_prep.execution.lease import read_claim
from data_prep.execution.markers import read_results
from data_prep.execution.statistics import merge_statistics
from data_prep.execution.task_files import claim_path, failure_path, list_tasks, remove_manifest_leftovers
from data_prep.filters.filters import KEPT, FilterCounts
from data_prep.pipeline.config import PackConfig, content_fields
from data_prep.pipeline.task import TaskResult, marker_path
from data_prep.shards.summary import print_summary
from mose.command import Command
from mose.config import fingerprint
from mose.dataset.manifest import SPLITS, Manifest, write_manifest
from mose.errors import MoseError
from mose.files.storage import is_local, storage_path
from mose.tokenizer import opened_tokenizer


def finish(dataset: Path, *, checksums: bool = False) -> Manifest:
    """Write the manifest of a data set whose tasks have all run; with `checksums`, read every byte again first.

    Raises:
        MoseError: a task is missing, was run with another config or on other sources, or its files are not as it says; or no
            task has a row.
    """
    config = read_config_of(dataset)
    inputs = _inputs_of(dataset, config)
    results = read_results(dataset, config.num_tasks, inputs, checksums=checksums)
    return write_manifest_of(dataset, config, inputs, results)


def write_manifest_of(dataset: Path, config: PackConfig, inputs: Inputs, results: Sequence[TaskResult]) -> Manifest:
    """Merge the results of all tasks.

    Raises:
        MoseError: no task has a row.
    """
    if not any(result.shards for result in results):
        raise MoseError(no_rows(results))
    remove_manifest_leftovers(dataset)
    _remove_records_of_done_tasks(dataset)
    with opened_tokenizer(dataset) as tokenizer:
        if tokenizer.fingerprint() != inputs.tokenizer:
            raise MoseError(f"{dataset}: its tokenizer is not the one that it was begun with ({inputs.tokenizer}); put that back")
        vocabulary_size = tokenizer.vocabulary_size
    manifest = Manifest(
        tokenizer_fingerprint=inputs.tokenizer,
        config_fingerprint=inputs.all,
        vocabulary_size=vocabulary_size,
        sequence_length=config.packing.sequence_length,
        splits={split: tuple(result.shards[split] for result in results if split in result.shards) for split in SPLITS},
        statistics=merge_statistics(results, config.packing),
    )
    write_manifest(dataset, manifest)
    return manifest


def no_rows(results: Sequence[TaskResult]) -> str:
    """Why a data set has no row: what its files were dropped for."""
    reasons = FilterCounts.merge([result.filters for result in results]).reasons
    files = {name: tally.files for name, tally in reasons.items() if tally.files}
    told = ", ".join(f"{name} {count}" for name, count in files.items() if name != KEPT) or "no files at all"
    kept = f"; {files[KEPT]} files passed but filled no row" if KEPT in files else ""
    repositories = sum(result.repositories for result in results)
    return f"sources: none of {repositories} repositories gave a row; expected usable files, dropped were: {told}{kept}"


def remove_empty(dataset: Path) -> None:
    """Remove what a data set without rows consists of, so that the next run reads its sources again."""
    states = list_tasks(dataset)
    for task in states.done | states.failed | states.claimed:
        for name in (marker_path, failure_path, claim_path):
            name(dataset, task).unlink(missing_ok=True)
    for path in [*_entries(dataset / "dropped"), *_entries(dataset / "tasks")]:
        path.unlink()
    remove_beginning(dataset)
    if is_local(dataset):
        for folder in (dataset / "tasks", dataset / "dropped", *(dataset / split for split in SPLITS), dataset):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _remove_records_of_done_tasks(dataset: Path) -> None:
    """Remove the claim and the failure that a process left which was killed between its task's marker and its own end."""
    states = list_tasks(dataset)
    for task in states.done & states.failed:
        failure_path(dataset, task).unlink(missing_ok=True)
    for task in states.done & states.claimed:
        claim = read_claim(dataset, task)
        if claim is None or not claim.is_alive(time.time()):
            claim_path(dataset, task).unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _inputs_of(dataset: Path, config: PackConfig) -> Inputs:
    inputs = read_inputs(dataset)
    if inputs is None:
        raise MoseError(f"{inputs_path(dataset)}: no such file; run `mose-data pack` again, which writes it")
    if inputs.fields != fingerprint(content_fields(config)):
        raise MoseError(f"{dataset / CONFIG_NAME}: was changed since the data set was begun; expected it as `pack` wrote it")
    return inputs


def _add_finish(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", type=str, help="Folder or URL of the data set.")
    parser.add_argument("--checksums", action="store_true", help="Read every byte again and compare SHA-256, not only sizes.")


def _finish(parsed: Namespace) -> None:
    print_summary(finish(storage_path(parsed.dataset), checksums=parsed.checksums))


COMMAND = Command("Merge the tasks of a data set that ran one by one, and check that nothing is missing.", _add_finish, _finish)
