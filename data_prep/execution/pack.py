"""`mose-data pack`: runs the missing tasks of a data set in one or several processes, then writes its manifest."""

import argparse
import functools
import sys
import time
from dataclasses import replace

from jsonargparse import ArgumentParser, Namespace

from data_prep.execution.finish import lock_dataset, no_rows, remove_empty, write_manifest_of
from data_prep.execution.inputs import bind_dataset, inputs_of, is_bound
from data_prep.execution.markers import in_threads, read_results
from data_prep.execution.progress import show_packing
from data_prep.execution.source_states import check_sources
from data_prep.execution.task_files import list_tasks
from data_prep.execution.task_runner import TaskRunner
from data_prep.execution.worker_pool import run_tasks
from data_prep.pipeline.assignment import Assignment, assign_sources
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.estimate.estimate import estimate
from data_prep.pipeline.held_out import prepare_duplicates, prepare_held_out, prepare_near_duplicates
from data_prep.shards.summary import print_summary
from data_prep.sources.directory import named_place
from data_prep.sources.registry import remarks
from mose.command import Command, add_config, read_config
from mose.dataset.manifest import Manifest
from mose.errors import MoseError
from mose.files.storage import is_local, storage_path
from mose.tokenizer import opened_tokenizer


def pack_dataset(config: PackConfig, task: int | None = None) -> Manifest | None:
    """Run the unfinished tasks of a data set, then write its manifest; with `task`, run only that task.

    A folder that holds part of the same data set is completed. The bytes do not depend on interruptions or `num_workers`.
    Returns the manifest, None with `task`.

    Raises:
        MoseError: the folder holds something else, or its sources, tokenizer or lists have changed; a source or the tokenizer
            cannot be read; a task failed; another process works on `task` or, without it, writes the data set; or there is no
            row (then no file is left).
    """
    config = config.resolve()
    _check_output_is_outside(config)
    if task is not None and not 0 <= task < config.num_tasks:
        raise MoseError(f"task: is {task}, expected 0 to {config.num_tasks - 1} (num_tasks is {config.num_tasks})")
    with opened_tokenizer(storage_path(config.tokenizer)) as tokenizer:
        assignment = assign_sources(config)
        inputs = inputs_of(config, tokenizer, assignment.fingerprint)
        dataset = storage_path(config.output)
        is_new = not is_bound(dataset, time.time())
        bind_dataset(config, tokenizer, inputs)
        check_sources(dataset, assignment, config.sources, task)
        # One element of an array speaks for all.
        for remark in remarks(config.sources) if not task else ():
            print(remark, file=sys.stderr, flush=True)
        prepare_near_duplicates(dataset, config)
        prepare_held_out(dataset, config, assignment, is_new=is_new)
        prepare_duplicates(dataset, config, assignment)
        # Tasks load the tokenizer themselves; if it is on an object store, from the local copy.
        runner = TaskRunner(replace(config, tokenizer=str(tokenizer.path)), inputs)
        if task is not None:
            _pack_one(runner, assignment, task)
            return None
        with lock_dataset(dataset):
            _pack_missing(runner, assignment)
            results = read_results(dataset, config.num_tasks, inputs)
            if any(result.shards for result in results):
                return write_manifest_of(dataset, config, inputs, results)
    remove_empty(dataset)
    raise MoseError(no_rows(results))


def _check_output_is_outside(config: PackConfig) -> None:
    """Refuse an output inside a source, which a later run would read as one more repository."""
    sources, output = config.sources, storage_path(config.output)
    for name in ("directories", "repositories", "stack_v2"):
        for entry in getattr(sources, name):
            place = storage_path(named_place(entry)[1] if name == "repositories" else entry)
            if is_local(place) and is_local(output) and place.is_dir() and output.resolve().is_relative_to(place.resolve()):
                raise MoseError(
                    f"output: {config.output} is inside sources.{name}: {entry}; expected a folder outside all sources"
                )


def _pack_one(runner: TaskRunner, assignment: Assignment, task: int) -> None:
    task_inputs = assignment.inputs_of(task)
    with show_packing(1, 0) as meter:
        meter.expect(task, task_inputs.expected_repositories)
        runner.run(task, task_inputs, functools.partial(meter.update, task))


def _pack_missing(runner: TaskRunner, assignment: Assignment) -> None:
    num_tasks = runner.config.num_tasks
    missing = _missing(runner, assignment)
    with show_packing(num_tasks, num_tasks - len(missing)) as meter:
        run_tasks(runner, assignment, missing, meter)


def _missing(runner: TaskRunner, assignment: Assignment) -> list[int]:
    # Only tasks with a marker are checked: of ten thousand missing tasks none is asked for.
    num_tasks = runner.config.num_tasks
    done = sorted(task for task in list_tasks(storage_path(runner.config.output)).done if task < num_tasks)
    finished = in_threads(lambda task: runner.is_done(task, assignment.inputs_of(task)), done)
    return sorted(set(range(num_tasks)) - {task for task, whole in zip(done, finished, strict=True) if whole})


def _add_pack(parser: ArgumentParser) -> None:
    add_config(parser, PackConfig)
    parser.add_argument(
        "--task",
        type=int | None,
        default=None,
        help="Run only this task, 0 to num_tasks - 1, as one element of a job array; `mose-data finish` when all have run.",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Write nothing: pack a sample of 64 MB and print repositories, files, tokens, rows, disk, core-hours and a margin.",
    )
    parser.add_argument("--num-tasks", dest="array_tasks", type=int | None, default=None, help=argparse.SUPPRESS)


def _pack(parsed: Namespace) -> None:
    config = read_config(parsed, PackConfig)
    if parsed.array_tasks is not None:
        config = replace(config, num_tasks=parsed.array_tasks)
    if parsed.dry_run:
        config = config.resolve()
        print("\n".join(estimate(config, assign_sources(config)).lines(config.num_tasks)))
        return
    manifest = pack_dataset(config, parsed.task)
    if manifest is None:
        print(f"task {parsed.task} of {config.num_tasks} is done; `mose-data finish {config.output}` when all are")
    else:
        print_summary(manifest)


COMMAND = Command("Pack repositories into a data set; a rerun completes what is missing.", _add_pack, _pack)
