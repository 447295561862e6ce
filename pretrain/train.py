"""READ FIRST. One pre-training run: open the data, build the engine, resume, loop. Knows time; `step.py` knows tensors."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mose.config import save_config
from mose.dataset.packed_sequence import TOKENS, SpecialTokens
from mose.errors import MoseError
from mose.files.atomic_file import file_sha256, named_errors
from mose.files.stop_signal import LauncherWatch, Process, StopSignal
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.run_directory import LOSS_TOTAL, RunDirectory
from mose.schedule import learning_rate
from pretrain.analysis.estimate import shape_of
from pretrain.analysis.validation import validate
from pretrain.checkpoints.beginning import say_position, sole_writer
from pretrain.checkpoints.files import CHANGES_NAME, latest_checkpoint
from pretrain.checkpoints.probe import run_probe
from pretrain.checkpoints.run_state import DivergedError, Progress
from pretrain.checkpoints.store import NEVER, CheckpointStore, ResumePoint, ResumeRequest, record_changes
from pretrain.config.frozen import DIGEST
from pretrain.config.identity import config_values
from pretrain.config.run import PretrainConfig
from pretrain.data.loader import BatchPlan, GlobalBatchLoader, validation_batches
from pretrain.data.micro_batch import MicroBatch
from pretrain.data.prefetch import Prefetcher
from pretrain.data.row_cost import RowCost
from pretrain.model.training_model import build_training_model
from pretrain.model.warm_start import fill_from_converted
from pretrain.monitoring.garbage import collected_between_steps
from pretrain.monitoring.learning import LearningWatch
from pretrain.monitoring.metrics import GRADIENT_NORM, LEARNING_RATE, NORM_OUTLIERS, SKIPPED_STEPS, MetricWriter
from pretrain.monitoring.profiler import NO_PROFILE, PROFILE_FOLDER, ProfileRequest, profiled_steps
from pretrain.monitoring.stacks import stacks_on_request
from pretrain.monitoring.step_log import log_step
from pretrain.monitoring.step_times import StepTimes
from pretrain.monitoring.throughput import Stopwatch, say_unknown_peak
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.engine import Engine
from pretrain.parallel.launch import initialize_parallel, leave_parallel
from pretrain.parallel.machine import attention_backend, dtype_of, machine_line
from pretrain.parallel.stage import CHECKPOINT, COUNT, DIVERGED, FINISHED, LOAD_ROWS, LOG, STOPPED, VALIDATE, Mark
from pretrain.parallel.watchdog import Watchdog, is_collective_failure
from pretrain.step import Guard, StepResult, count_globally, train_step
from pretrain.storage.run_data import RunData, open_run_data


def train(
    config: PretrainConfig,
    request: ResumeRequest,
    profiling: ProfileRequest = NO_PROFILE,
    launcher: tuple[Process, ...] = (),
) -> bool:
    """Run (or resume) `config` up to `max_steps`; every rank calls it. `profiling` records some steps.

    Returns False if a signal, or the end of the processes in `launcher`, ended it early.

    Raises:
        MoseError: the config, the data set, the launched ranks and a checkpoint in the run directory do not match; another
            process writes into the directory, or it holds a run without its checkpoints; or a rank failed to join a collective,
            and the message names it.
        DivergedError: too many steps in a row were skipped.
    """
    data = open_run_data(config)
    config = config.resolve(data.tokenizer.vocabulary_size)
    context = initialize_parallel(config)
    try:
        backend = attention_backend(config, context.device)
        if context.is_main:
            print(machine_line(backend, context), file=sys.stderr, flush=True)
        run = RunDirectory(Path(config.output))
        store = CheckpointStore(run.checkpoints, context, identity_of(config, data, context))
        with (
            sole_writer(run, store) as check_lock,
            StopSignal() as stop,
            LauncherWatch(launcher, stop),
            open_watchdog(config, context, run) as watchdog,
            named_failures(watchdog),
        ):
            if request.mode == NEVER:
                run.create(resume=False)
            selection = store.select(request)
            say_position(run, store, context, selection)
            engine = build_engine(config, context, selection)
            progress = resume(store, engine, selection)
            # After all checks: a run that is refused writes nothing and leaves the config of the existing run unchanged.
            prepare_run_directory(config, data, context, selection)
            if progress.step >= config.max_steps and context.is_main:
                print(f"{config.output}: already at step {progress.step} of {config.max_steps}")
            with (
                stacks_on_request(run.stacks, context.rank, context.layout.world_size),
                profiled_steps(profiling, run.path / PROFILE_FOLDER, context) as profiled,
                collected_between_steps(profiled) as after_step,
            ):
                return loop(Run(config, context, data, run, engine, store, watchdog, stop, check_lock), progress, after_step)
    finally:
        leave_parallel()
        data.close()


def open_watchdog(config: PretrainConfig, context: ParallelContext, run: RunDirectory) -> Watchdog:
    """The watchdog of this rank; on rank 0 it writes the heartbeat once the run directory exists."""

    def beat(mark: Mark, seconds: float) -> None:
        if run.config.is_file():
            run.write_heartbeat(mark.step, stage=mark.stage, stage_seconds=round(seconds, 1))

    layout, timeout = context.layout, config.parallel.collective_timeout_seconds
    written = beat if context.is_main else None
    ranks = (context.rank, layout.world_size, layout.tensor_ranks)
    return Watchdog(*ranks, timeout, written, config.intervals.heartbeat_seconds)


@contextlib.contextmanager
def named_failures(watchdog: Watchdog) -> Iterator[None]:
    """Turn a collective that failed because of another rank into one line that names that rank and its stage.

    Raises:
        MoseError: a collective failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_collective_failure(error):
            raise
        reason = str(error).splitlines()[0].rpartition("] ")[2][:120]
        raise MoseError(f"{watchdog.explain_failure()} ({reason})") from error


@dataclass(frozen=True)
class Run:
    """The objects that the training loop uses."""

    config: PretrainConfig
    context: ParallelContext
    data: RunData
    directory: RunDirectory
    engine: Engine
    store: CheckpointStore
    watchdog: Watchdog
    stop: StopSignal
    check_lock: Callable[[], None]


def prepare_run_directory(
    config: PretrainConfig, data: RunData, context: ParallelContext, selection: ResumePoint | None = None
) -> None:
    """Write the resolved config, versions, tokenizer, and the changes of a resumed run, before any step."""
    run = RunDirectory(Path(config.output))
    if context.is_main:
        run.create(resume=True)
        if selection is not None:
            record_changes(run.path / CHANGES_NAME, selection)
        save_config(config, run.config)
        run.write_versions(attention_backend=attention_backend(config, context.device), **{DIGEST: file_sha256(run.config)})
        with named_errors(run.path):
            data.tokenizer.copy_to(run.path)
        run.write_saved(selection.checkpoint.name if selection is not None else None)
    context.barrier()


def build_engine(config: PretrainConfig, context: ParallelContext, selection: ResumePoint | None = None) -> Engine:
    """Build this rank's slice of the model and hand it to DeepSpeed, ready to load `selection`."""
    resumed = selection is not None
    model = build_training_model(config.model, config.parallel, config.seed, dtype_of(config), context, config.objective, resumed)
    if config.start_from and not resumed:
        fill_from_converted(model, Path(config.start_from), config, context)
    return Engine(model, config, context, merged=selection is not None and selection.converts)


def identity_of(config: PretrainConfig, data: RunData, context: ParallelContext) -> dict[str, object]:
    """The values that must be equal for a run to resume."""
    return config_values(config, data.fingerprint, context.layout.world_size, data.generations)


def resume(store: CheckpointStore, engine: Engine, selection: ResumePoint | None) -> Progress:
    """Load the selected checkpoint, or start at step 0."""
    return Progress(0, 0, 0) if selection is None else store.load(engine, selection)


def batch_plan(
    config: PretrainConfig, special: SpecialTokens, ordinary_ids: TOKENS, data_rank: int, data_ranks: int
) -> BatchPlan:
    """Which rows make a global batch, how they are masked, and which of them one data rank computes."""
    shape = ModularStarEncoderConfig(**config.model.hugging_face())
    return BatchPlan(
        seed=config.seed,
        global_batch_rows=config.batch.global_rows,
        micro_batch_rows=config.batch.micro_batch_rows,
        special=special,
        ordinary_ids=ordinary_ids,
        data_rank=data_rank,
        data_ranks=data_ranks,
        masked_share=config.data.masking_share,
        block_rows=config.data.block_rows,
        window_rows=config.data.window_rows,
        micro_batch_tokens=config.micro_batch_tokens,
        row_cost=RowCost.of_model(shape, config.data.masking_share),
        # From stage 2 on, gradients are reduced in the backward pass of every micro-batch, so ranks need equally many.
        equal_micro_batches=config.parallel.zero_stage >= 2,
    )


def loop(run: Run, progress: Progress, after_step: Callable[[], None]) -> bool:
    """Run the steps from `progress` to `max_steps`; validate, save and report at their intervals.

    `after_step` is called at the end of each step. Returns False if a signal ended the run.
    """
    config, context, watchdog = run.config, run.context, run.watchdog
    tokenizer, begun = run.data.tokenizer, progress.step
    # The progress after the last step that was applied. Its weights are the present ones, since a skipped step changes none.
    applied = progress
    ranks = (context.data_rank, context.layout.data_ranks)
    plan = batch_plan(config, tokenizer.special, tokenizer.ordinary_ids(), *ranks)
    stopwatch, watch = stopwatch_of(run), LearningWatch(config, run.engine.module, context.is_main)
    loader = GlobalBatchLoader(run.data.rows, plan, run.data.mixture)
    with Prefetcher(loader, progress.consumed_rows) as prefetcher, open_writer(run, progress) as writer:
        for step in range(progress.step, config.max_steps):
            watchdog.enter(LOAD_ROWS, step=step)
            run.check_lock()
            batches = prefetcher.take()
            watchdog.enter(COUNT)
            counted = count_globally(batches, context, run.stop.requested)
            if counted.stop:
                leave_early(run, progress, applied, begun)
                return False
            watch.before(due(step + 1, config.intervals.log_every_steps, config.max_steps))
            rate = learning_rate(step, config.schedule)
            guard = Guard(progress.health.loss_limit(config.stability), watchdog.enter)
            result = train_step(run.engine, batches, rate, config.seed, step, context, counted, guard)
            stopwatch.add(result, prefetcher.last_wait_seconds)
            watchdog.enter(LOG)
            before, progress = progress, advance(progress, result, config)
            applied = applied if result.skipped else progress
            look_after(run, before, progress, applied, result, batches)
            watch.add(progress.step, result, batches)
            if due(progress.step, config.intervals.log_every_steps, config.max_steps):
                values = step_values(result, rate, config, progress)
                values |= run.data.scalars(config.seed, progress.consumed_rows) | watch.read(progress.step)
                report(writer, progress, values | stopwatch.read(result), stopwatch.straggler)
            if due(progress.step, config.intervals.validate_every_steps, config.max_steps):
                watchdog.enter(VALIDATE)
                report_validation(run, writer, progress, plan, watch)
            if due(progress.step, config.intervals.checkpoint_every_steps, config.max_steps):
                save_due(run, progress, applied)
            if writer is not None:
                writer.advance(progress.step)
            after_step()
    watchdog.enter(FINISHED, step=progress.step)
    return True


def leave_early(run: Run, progress: Progress, applied: Progress, begun: int) -> None:
    """Save a checkpoint after a stop signal, unless this step is saved already; every rank calls it after the same step."""
    # One skipped step alone is an outlier, which the run leaves out; more in a row may end with their cause.
    if progress.step - applied.step > 1:
        save_before_streak(run, progress, applied)
    elif progress.step > begun and not due(progress.step, run.config.intervals.checkpoint_every_steps, run.config.max_steps):
        save(run, progress)
    run.watchdog.enter(STOPPED, step=progress.step)
    if run.context.is_main:
        print(f"stopped {run.stop.reason} after step {progress.step}; the same command resumes it", file=sys.stderr, flush=True)


def look_after(
    run: Run, before: Progress, after: Progress, applied: Progress, result: StepResult, batches: Sequence[MicroBatch]
) -> None:
    """Report and log a step that went wrong, with its rows; every rank calls it.

    Raises:
        DivergedError: too many steps in a row were skipped.
    """
    config = run.config.stability
    reason = before.health.reason(result.loss, result.gradient_norm, config)
    if not reason:
        return
    log_step(run.directory, after.step, reason, result, batches, before.health, run.context)
    if run.context.is_main:
        what = "skipped" if result.skipped else "done"
        numbers = f"loss {result.loss:.4f} (mean {before.health.loss.mean:.4f}), gradient norm {result.gradient_norm:.3f}"
        print(f"step {after.step}: {reason}, {what}: {numbers}; its rows: {run.directory.skipped}", file=sys.stderr, flush=True)
    if 0 < config.max_skipped_in_a_row <= after.health.skipped_in_a_row:
        save_before_streak(run, after, applied)
        run.watchdog.enter(DIVERGED, step=after.step)
        saved = latest_checkpoint(run.directory.checkpoints)
        kept = f"the last checkpoint is {saved.name}" if saved else "there is no checkpoint"
        many = f"{after.health.skipped_in_a_row} steps in a row were skipped (stability.max_skipped_in_a_row)"
        again = "resumed, the run is offered their rows again; to leave them out, raise the limit, or 0 for none"
        raise DivergedError(f"{run.config.output}: step {after.step}: {many}, the last for {reason}; {kept}; {again}")


def due(step: int, every: int, last: int) -> bool:
    """Whether an action with interval `every` (0: only after the last step) is due after `step` steps."""
    return step == last or (every > 0 and step % every == 0)


def advance(progress: Progress, result: StepResult, config: PretrainConfig) -> Progress:
    """The progress after one more step; a skipped step counts, so that schedule and data position stay as planned."""
    rows = progress.consumed_rows + config.batch.global_rows
    health = progress.health.after(result.loss, result.gradient_norm, config.stability)
    return Progress(progress.step + 1, rows, progress.consumed_tokens + result.counts.real_tokens, health)


def step_values(result: StepResult, rate: float, config: PretrainConfig, progress: Progress) -> dict[str, float]:
    """The scalars of one step that do not depend on the machine's speed; `progress` is that after the step."""
    values = {LOSS_TOTAL: result.loss, LEARNING_RATE: rate, GRADIENT_NORM: result.gradient_norm}
    values |= {SKIPPED_STEPS: progress.health.skipped_steps, NORM_OUTLIERS: progress.health.norm_outliers}
    return values | result.exit_metrics(config.model.exit_layers, config.objective)


def open_writer(run: Run, progress: Progress) -> contextlib.AbstractContextManager[MetricWriter | None]:
    """The metric writer on rank 0, None elsewhere; it drops values of later steps that a killed run left behind."""
    if not run.context.is_main:
        return contextlib.nullcontext()
    return MetricWriter(run.directory, run.config.max_steps, progress.step, progress.consumed_tokens)


def stopwatch_of(run: Run) -> Stopwatch:
    """A stopwatch for this run that compares its ranks; rank 0 reports a device whose peak is not known."""
    context = run.context
    if context.is_main:
        say_unknown_peak(context.device)
    step_times = StepTimes(run.engine.module, context)
    return Stopwatch(shape_of(run.config), context.device, context.layout.world_size, step_times)


def report(writer: MetricWriter | None, progress: Progress, values: dict[str, float], note: str = "") -> None:
    """Write one interval's scalars, on rank 0; `note` is for the console line."""
    if writer is not None:
        writer.write(progress.step, progress.consumed_tokens, values, note)


def report_validation(run: Run, writer: MetricWriter | None, progress: Progress, plan: BatchPlan, watch: LearningWatch) -> None:
    """Validate on the held-out rows, on every rank, and write the scalars."""
    if run.data.held_out is None:
        return
    batches = validation_batches(run.data.held_out, plan, run.config.intervals.validation_rows)
    values = validate(run.engine, batches, run.config.model.exit_layers, run.context, run.config.objective)
    report(writer, progress, values)
    watch.read_validation(progress.step, values)


def save(run: Run, progress: Progress) -> None:
    """Write a checkpoint with its probe, report how long training paused for it, and delete old checkpoints."""
    run.watchdog.enter(CHECKPOINT)
    intervals = run.config.intervals
    saved = run.store.save(run.engine, progress, run_probe(run.engine, run.config, run.context))
    if run.context.is_main:
        print(f"checkpoint {saved}", file=sys.stderr, flush=True)
        run.directory.write_saved(saved.path.name)
    run.store.prune(intervals.keep_last_checkpoints, intervals.permanent_every_steps)


def save_due(run: Run, progress: Progress, applied: Progress) -> None:
    """Save the checkpoint that is due, but none inside a streak of skipped steps: a run resumed from it would miss their rows.

    Instead the state before the streak is saved, from which the rows are offered again. After the last step both are, since
    the last checkpoint finishes the run.
    """
    skipped = progress.step - applied.step
    if skipped:
        save_before_streak(run, progress, applied)
        if progress.step < run.config.max_steps:
            return
        if run.context.is_main:
            again = f"; --resume {applied.step} offers them again" if applied.step else ""
            print(f"warning: the last {skipped} steps were skipped: nothing was learnt from their rows{again}", file=sys.stderr)
    save(run, progress)


def save_before_streak(run: Run, progress: Progress, applied: Progress) -> None:
    """Save the state before the skipped steps that `progress` ends with, unless it is saved or is that of step 0."""
    path = run.directory.checkpoint(applied.step)
    if applied.step == 0 or run.store.from_main(path.exists):
        return
    skipped = progress.step - applied.step
    if run.context.is_main:
        print(f"steps {applied.step + 1} to {progress.step} were skipped: saving the state before them", file=sys.stderr)
    with run.engine.counted_back(skipped):
        save(run, applied)
