"""READ FIRST. One pre-training run: open the data, build the engine, resume, loop. Knows time; `step.py` knows tensors."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mose.config import save_config
from mose.run_directory import RunDirectory
from mose.schedule import learning_rate
from mose.tokenizer import Tokenizer
from pretrain.checkpoint import CHANGES_NAME, Progress
from pretrain.checkpoint_store import NEVER, CheckpointStore, ResumeRequest, Selection, record_changes
from pretrain.config import PretrainConfig
from pretrain.data import BatchPlan, GlobalBatchLoader, validation_batches
from pretrain.estimate import shape_of
from pretrain.identity import config_values
from pretrain.machine import attention_backend, dtype_of, machine_line
from pretrain.metrics import GRADIENT_NORM, LEARNING_RATE, LOSS_TOTAL, MetricWriter
from pretrain.parallel.context import ParallelContext, initialize_parallel, leave_parallel
from pretrain.parallel.engine import Engine
from pretrain.prefetch import Prefetcher
from pretrain.probe import run_probe
from pretrain.profiler import NO_PROFILE, PROFILE_FOLDER, ProfileRequest, profiled_steps
from pretrain.sources import RunData, open_run_data
from pretrain.step import StepResult, train_step
from pretrain.step_times import StepTimes
from pretrain.throughput import Stopwatch, say_unknown_peak
from pretrain.training_model import build_training_model
from pretrain.validation import validate
from pretrain.warm_start import fill_from_converted


def train(config: PretrainConfig, request: ResumeRequest, profiling: ProfileRequest = NO_PROFILE) -> None:
    """Run (or continue) `config`, from its first step to `max_steps`; every rank calls it. `profiling` records some steps.

    Raises:
        MoseError: the config, the data set, the launched ranks or a checkpoint in the run directory do not fit together.
    """
    data = open_run_data(config)
    config = config.resolve(data.tokenizer.vocabulary_size)
    context = initialize_parallel(config)
    try:
        backend = attention_backend(config, context.device)
        if context.is_main:
            print(machine_line(backend, context), file=sys.stderr, flush=True)
        run = RunDirectory(Path(config.output))
        if request.mode == NEVER:
            run.create(resume=False)
        store = CheckpointStore(run.checkpoints, context, identity_of(config, data, context))
        selection = store.select(request)
        engine = build_engine(config, context, selection)
        progress = resume(store, engine, selection)
        # Only now: a run that is refused leaves nothing behind, and the config of the run that was there as it was.
        prepare_run_directory(config, data, context, selection)
        if progress.step >= config.max_steps and context.is_main:
            print(f"{config.output}: already at step {progress.step} of {config.max_steps}")
        with profiled_steps(profiling, run.path / PROFILE_FOLDER, context) as after_step:
            loop(Run(config, context, data, run, engine, store), progress, after_step)
    finally:
        leave_parallel()
        data.close()


@dataclass(frozen=True)
class Run:
    """What the loop works with."""

    config: PretrainConfig
    context: ParallelContext
    data: RunData
    directory: RunDirectory
    engine: Engine
    store: CheckpointStore


def prepare_run_directory(
    config: PretrainConfig, data: RunData, context: ParallelContext, selection: Selection | None = None
) -> None:
    """Write the resolved config, versions, tokenizer, and with what a resumed run goes on otherwise, before any step."""
    run = RunDirectory(Path(config.output))
    if context.is_main:
        run.create(resume=True)
        if selection is not None:
            record_changes(run.path / CHANGES_NAME, selection)
        save_config(config, run.config)
        run.write_versions(attention_backend=attention_backend(config, context.device))
        data.tokenizer.copy_to(run.path)
    context.barrier()


def build_engine(config: PretrainConfig, context: ParallelContext, selection: Selection | None = None) -> Engine:
    """Build this rank's slice of the model and hand it to DeepSpeed, ready to load `selection`."""
    model = build_training_model(config.model, config.seed, dtype_of(config), context)
    if config.start_from and selection is None:
        fill_from_converted(model, Path(config.start_from), config, context)
    return Engine(model, config, context, merged=selection is not None and selection.converts)


def identity_of(config: PretrainConfig, data: RunData, context: ParallelContext) -> dict[str, object]:
    """What must be the same for a run to continue."""
    return config_values(config, data.fingerprint, context.layout.world_size)


def resume(store: CheckpointStore, engine: Engine, selection: Selection | None) -> Progress:
    """Continue from the selected checkpoint, or start at step 0."""
    return Progress(0, 0, 0) if selection is None else store.load(engine, selection)


def batch_plan(config: PretrainConfig, tokenizer: Tokenizer, context: ParallelContext) -> BatchPlan:
    """Which rows make a global batch, how they are masked, and which of them are this rank's."""
    return BatchPlan(
        seed=config.seed,
        global_batch_rows=config.batch.global_rows,
        micro_batch_rows=config.batch.micro_batch_rows,
        special=tokenizer.special,
        ordinary_ids=tokenizer.ordinary_ids(),
        data_rank=context.data_rank,
        data_ranks=context.layout.data_ranks,
        masked_share=config.data.masking_share,
        block_rows=config.data.block_rows,
        window_rows=config.data.window_rows,
    )


def loop(run: Run, progress: Progress, after_step: Callable[[], None]) -> None:
    """Steps from `progress` to `max_steps`; validates, saves and reports at their intervals; then calls `after_step`."""
    config, context = run.config, run.context
    plan = batch_plan(config, run.data.tokenizer, context)
    stopwatch = stopwatch_of(run)
    loader = GlobalBatchLoader(run.data.rows, plan, run.data.mixture)
    with Prefetcher(loader, progress.consumed_rows) as prefetcher, open_writer(run, progress) as writer:
        for step in range(progress.step, config.max_steps):
            rate = learning_rate(step, config.schedule)
            result = train_step(run.engine, prefetcher.take(), rate, config.seed, step, context)
            stopwatch.add(result, prefetcher.last_wait_seconds)
            progress = advance(progress, result, config)
            if due(progress.step, config.intervals.log_every_steps, config.max_steps):
                values = step_values(result, rate, config) | run.data.scalars(config.seed, progress.consumed_rows)
                report(run, writer, progress, values | stopwatch.read(result), stopwatch.straggler)
            if due(progress.step, config.intervals.validate_every_steps, config.max_steps):
                report_validation(run, writer, progress, plan)
            if due(progress.step, config.intervals.checkpoint_every_steps, config.max_steps):
                save(run, progress)
            if writer is not None:
                writer.advance(progress.step)
            after_step()


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps (0: never but at the end) happens after `step` steps."""
    return step == last or (every > 0 and step % every == 0)


def advance(progress: Progress, result: StepResult, config: PretrainConfig) -> Progress:
    """Where the run stands after one more step."""
    rows = progress.consumed_rows + config.batch.global_rows
    return Progress(progress.step + 1, rows, progress.consumed_tokens + result.counts.real_tokens)


def step_values(result: StepResult, rate: float, config: PretrainConfig) -> dict[str, float]:
    """The scalars of one step that do not depend on how fast the machine was."""
    values = {LOSS_TOTAL: result.loss, LEARNING_RATE: rate, GRADIENT_NORM: result.gradient_norm}
    return values | result.exit_metrics(config.model.exit_layers)


def open_writer(run: Run, progress: Progress) -> contextlib.AbstractContextManager[MetricWriter | None]:
    """The metric writer of rank 0, nothing elsewhere; later values that a killed run left behind are dropped."""
    if not run.context.is_main:
        return contextlib.nullcontext()
    return MetricWriter(run.directory, run.config.max_steps, progress.step, progress.consumed_tokens)


def stopwatch_of(run: Run) -> Stopwatch:
    """A stopwatch for this run that compares its ranks; rank 0 says so if the device's peak is not known."""
    context = run.context
    if context.is_main:
        say_unknown_peak(context.device)
    step_times = StepTimes(run.engine.module, context)
    return Stopwatch(shape_of(run.config), context.device, context.layout.world_size, step_times)


def report(run: Run, writer: MetricWriter | None, progress: Progress, values: dict[str, float], note: str = "") -> None:
    """Write one interval's scalars and the heartbeat, on rank 0; `note` is for the console line."""
    if writer is not None:
        writer.write(progress.step, progress.consumed_tokens, values, note)
        run.directory.write_heartbeat(progress.step)


def report_validation(run: Run, writer: MetricWriter | None, progress: Progress, plan: BatchPlan) -> None:
    """Validate on the held-out rows, on every rank, and write the scalars."""
    if run.data.held_out is None:
        return
    batches = validation_batches(run.data.held_out, plan, run.config.intervals.validation_rows)
    values = validate(run.engine, batches, run.config.model.exit_layers, run.context)
    report(run, writer, progress, values)


def save(run: Run, progress: Progress) -> None:
    """Write a checkpoint with its probe, say how long training stood still for it, and remove those that are not kept."""
    intervals = run.config.intervals
    saved = run.store.save(run.engine, progress, run_probe(run.engine, run.config, run.context))
    if run.context.is_main:
        print(f"checkpoint {saved}", file=sys.stderr, flush=True)
    run.store.prune(intervals.keep_last_checkpoints, intervals.permanent_every_steps)
