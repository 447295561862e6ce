"""`mose-data finish`: merges the tasks of a data set into its manifest if all have run and their files are complete."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from data_prep.execution.inputs import CONFIG_NAME, Inputs, inputs_path, read_config_of, read_inputs, unbind_dataset
from data_prep.execution.lease import read_lease
from data_prep.execution.markers import read_results
from data_prep.execution.statistics import merge_statistics
from data_prep.execution.task_files import failure_path, lease_path, list_names, list_tasks, remove_manifest_leftovers
from data_prep.filters.filters import KEPT, FilterCounts
from data_prep.pipeline.config import PackConfig, content_fields
from data_prep.pipeline.held_out import held_out_path
from data_prep.pipeline.task_marker import TaskMarker, too_many_bad
from data_prep.shards.summary import print_summary
from mose.command import Command
from mose.config import fingerprint
from mose.dataset.manifest import MANIFEST_NAME, SPLITS, UNFINISHED_NAME, Manifest, read_manifest, write_manifest
from mose.errors import MoseError
from mose.files.lock import WRITER_LOCK, Holder, Lock, lock_file
from mose.files.storage import is_local, storage_path
from mose.tokenizer import opened_tokenizer


def lock_dataset(dataset: Path) -> Lock[Holder]:
    """The lock of whoever runs all tasks of a data set, finishes it or removes from it; single tasks hold their leases instead.

    Entering it raises MoseError if another process holds it; the message names that process.
    """
    return lock_file(dataset / WRITER_LOCK, str(dataset), "one `mose-data pack`, `finish` or `remove` per data set")


def finish(dataset: Path, *, checksums: bool = False) -> Manifest:
    """Write the manifest of a data set whose tasks have all run; with `checksums`, check every byte first.

    Raises:
        MoseError: a task is missing, has another config or other sources, or its files differ from its marker; or no task has
            a row.
    """
    config = read_config_of(dataset)
    inputs = _inputs_of(dataset, config)
    results = read_results(dataset, config.num_tasks, inputs, checksums=checksums)
    return write_manifest_of(dataset, config, inputs, results)


def write_manifest_of(dataset: Path, config: PackConfig, inputs: Inputs, results: Sequence[TaskMarker]) -> Manifest:
    """Merge the markers of all tasks into the manifest.

    Raises:
        MoseError: no task has a row, or more repositories than `max_bad_repositories` cannot be read.
    """
    if not any(result.shards for result in results):
        raise MoseError(no_rows(results))
    bad = [repository for result in results for repository in result.bad_repositories]
    if len(bad) > config.max_bad_repositories:
        raise MoseError(too_many_bad(config.max_bad_repositories, bad))
    remove_manifest_leftovers(dataset)
    _remove_records_of_done_tasks(dataset)
    with opened_tokenizer(dataset) as tokenizer:
        if tokenizer.fingerprint() != inputs.tokenizer:
            raise MoseError(f"{dataset}: its tokenizer is not the one that it was begun with ({inputs.tokenizer}); put that back")
        vocabulary_size = tokenizer.vocabulary_size
    manifest = Manifest(
        tokenizer_fingerprint=inputs.tokenizer,
        config_fingerprint=inputs.config,
        vocabulary_size=vocabulary_size,
        sequence_length=config.packing.sequence_length,
        splits={split: tuple(result.shards[split] for result in results if split in result.shards) for split in SPLITS},
        statistics=merge_statistics(results, config.packing) | _held_out_copies(dataset, config),
    )
    manifest = dataclasses.replace(manifest, generations=_generations(dataset, manifest.content_root))
    write_manifest(dataset, manifest)
    return manifest


def _held_out_copies(dataset: Path, config: PackConfig) -> dict[str, str]:
    """What happened to copies of held-out files, where the tasks looked for them: an earlier version did not."""
    return {"held_out_copies": config.held_out_copies} if held_out_path(dataset).is_file() else {}


def _generations(dataset: Path, content_root: str) -> tuple[str, ...]:
    """The content roots so far and this one; only a removal makes a successor, all else begins anew."""
    try:
        earlier = read_manifest(dataset).content_generations if (dataset / MANIFEST_NAME).is_file() else ()
    except MoseError:
        # A damaged manifest is being replaced.
        earlier = ()
    if earlier and earlier[-1] == content_root:
        return earlier
    return (*earlier, content_root) if (dataset / UNFINISHED_NAME).is_file() else (content_root,)


def no_rows(results: Sequence[TaskMarker]) -> str:
    """Why a data set has no row: the reasons for which its files were dropped."""
    reasons = FilterCounts.merge([result.filters for result in results]).reasons
    files = {name: tally.files for name, tally in reasons.items() if tally.files}
    dropped = ", ".join(f"{name} {count}" for name, count in files.items() if name != KEPT) or "no files at all"
    bad = [repository for result in results for repository in result.bad_repositories]
    dropped += f"; {len(bad)} cannot be read: {bad[0].reason}" if bad else ""
    kept = f"; {files[KEPT]} files passed but filled no row" if KEPT in files else ""
    repositories = sum(result.repositories for result in results)
    return f"sources: none of {repositories} repositories gave a row; expected usable files, dropped were: {dropped}{kept}"


def remove_empty(dataset: Path) -> None:
    """Remove all files of a data set without rows, so that the next run reads its sources again."""
    for folder in (dataset / "dropped", dataset / "tasks"):
        for name in list_names(folder):
            (folder / name).unlink(missing_ok=True)
    unbind_dataset(dataset)
    if is_local(dataset):
        for folder in (dataset / "tasks", dataset / "dropped", *(dataset / split for split in SPLITS), dataset):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _remove_records_of_done_tasks(dataset: Path) -> None:
    """Remove the lease and the failure of a task whose process was killed after it wrote the marker."""
    states = list_tasks(dataset)
    for task in states.done & states.failed:
        failure_path(dataset, task).unlink(missing_ok=True)
    for task in states.done & states.held:
        lease = read_lease(dataset, task)
        if lease is None or not lease.is_alive(time.time()):
            lease_path(dataset, task).unlink(missing_ok=True)


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
    dataset = storage_path(parsed.dataset)
    # Read first: no lock file is put into a folder that is no data set.
    read_config_of(dataset)
    with lock_dataset(dataset):
        print_summary(finish(dataset, checksums=parsed.checksums))


COMMAND = Command("Merge the tasks of a data set that ran one by one, and check that nothing is missing.", _add_finish, _finish)
