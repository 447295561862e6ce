"""READ FIRST. One pre-training run: open the data, build the engine, resume, loop. Knows time; `step.py` knows tensors."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from mose.config import fingerprint, require, save_config
from mose.run_directory import RunDirectory
from mose.schedule import learning_rate
from mose.tokenizer import Tokenizer, load_tokenizer
from pretrain.checkpoint import CheckpointStore, Progress, config_values
from pretrain.config import PretrainConfig
from pretrain.data import BatchPlan, GlobalBatchLoader, PackedRows, validation_batches
from pretrain.estimate import shape_of
from pretrain.metrics import GRADIENT_NORM, LEARNING_RATE, LOSS_TOTAL, MetricWriter
from pretrain.parallel.context import ParallelContext, initialize_parallel, leave_parallel
from pretrain.parallel.engine import Engine
from pretrain.prefetch import Prefetcher
from pretrain.probe import run_probe
from pretrain.step import StepResult, train_step
from pretrain.throughput import Stopwatch
from pretrain.training_model import build_training_model
from pretrain.validation import validate


def train(config: PretrainConfig) -> None:
    """Run (or continue) `config`, from its first step to `max_steps`; every rank calls it.

    Raises:
        MoseError: the config, the data set, the launched ranks or a checkpoint in the run directory do not fit together.
    """
    data = open_data(config)
    config = config.resolve(data.tokenizer.vocabulary_size)
    context = initialize_parallel(config)
    try:
        run = prepare_run_directory(config, data, context)
        engine = build_engine(config, context)
        store = CheckpointStore(run.checkpoints, context, identity_of(config, data, context))
        progress = resume(store, engine)
        if progress.step >= config.max_steps and context.is_main:
            print(f"{config.output}: already at step {progress.step} of {config.max_steps}")
        loop(Run(config, context, data, run, engine, store), progress)
    finally:
        leave_parallel()


@dataclass(frozen=True)
class Data:
    """The two splits a run reads, and the tokenizer they were packed with."""

    rows: PackedRows
    held_out: PackedRows | None
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Run:
    """What the loop works with."""

    config: PretrainConfig
    context: ParallelContext
    data: Data
    directory: RunDirectory
    engine: Engine
    store: CheckpointStore


def open_data(config: PretrainConfig) -> Data:
    """Open the data set and check that its rows fit the model."""
    require(bool(config.data.dataset), "data.dataset: not given, expected a folder written by `mose-data pack`")
    folder = Path(config.data.dataset)
    tokenizer = load_tokenizer(folder)
    rows = PackedRows(folder, config.data.split, tokenizer.fingerprint())
    longest = f"model.max_length: {config.model.max_length}, the rows of {folder} have {rows.sequence_length} slots"
    require(rows.sequence_length <= config.model.max_length, longest)
    wanted = config.intervals.validation_rows > 0 and rows.manifest.rows(config.data.validation_split) > 0
    held_out = PackedRows(folder, config.data.validation_split, tokenizer.fingerprint()) if wanted else None
    return Data(rows, held_out, tokenizer)


def prepare_run_directory(config: PretrainConfig, data: Data, context: ParallelContext) -> RunDirectory:
    """Write the resolved config, versions and tokenizer before anything runs."""
    run = RunDirectory(Path(config.output))
    if context.is_main:
        run.create(resume=True)
        save_config(config, run.config)
        run.write_versions()
        data.tokenizer.copy_to(run.path)
    context.barrier()
    return run


def build_engine(config: PretrainConfig, context: ParallelContext) -> Engine:
    """Build this rank's slice of the model and hand it to DeepSpeed."""
    dtype = torch.bfloat16 if config.parallel.precision == "bf16" else torch.float32
    model = build_training_model(config.model, config.seed, dtype, context)
    return Engine(model, config, context)


def identity_of(config: PretrainConfig, data: Data, context: ParallelContext) -> dict[str, object]:
    """What must be the same for a run to continue."""
    manifest = data.rows.manifest
    shards = [dataclasses.asdict(shard) for shard in manifest.shards(config.data.split)]
    return config_values(config, fingerprint([manifest.tokenizer_fingerprint, shards]), context.layout.world_size)


def resume(store: CheckpointStore, engine: Engine) -> Progress:
    """Continue from the latest complete checkpoint, or start at step 0."""
    latest = store.latest()
    return Progress(0, 0, 0) if latest is None else store.load(engine, latest)


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


def loop(run: Run, progress: Progress) -> None:
    """Steps from `progress` to `max_steps`; validates, saves and reports at their intervals."""
    config, context = run.config, run.context
    plan = batch_plan(config, run.data.tokenizer, context)
    stopwatch = Stopwatch(shape_of(config), context.device, context.layout.world_size)
    loader = GlobalBatchLoader(run.data.rows, plan)
    with Prefetcher(loader, progress.consumed_rows) as prefetcher, open_writer(run, progress) as writer:
        for step in range(progress.step, config.max_steps):
            rate = learning_rate(step, config.schedule)
            result = train_step(run.engine, prefetcher.take(), rate, config.seed, step, context)
            stopwatch.add(result, prefetcher.last_wait_seconds)
            progress = advance(progress, result, config)
            if due(progress.step, config.intervals.log_every_steps, config.max_steps):
                report(run, writer, progress, step_values(result, rate, config) | stopwatch.read(result))
            if due(progress.step, config.intervals.validate_every_steps, config.max_steps):
                report_validation(run, writer, progress, plan)
            if due(progress.step, config.intervals.checkpoint_every_steps, config.max_steps):
                save(run, progress)
            if writer is not None:
                writer.advance(progress.step)


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps (0: never but at the end) happens after `step` steps."""
    return step == last or (every > 0 and step % every == 0)


def advance(progress: Progress, result: StepResult, config: PretrainConfig) -> Progress:
    """Where the run stands after one more step."""
    rows = progress.consumed_rows + config.batch.global_rows
    return Progress(progress.step + 1, rows, progress.consumed_tokens + result.real_tokens)


def step_values(result: StepResult, rate: float, config: PretrainConfig) -> dict[str, float]:
    """The scalars of one step that do not depend on how fast the machine was."""
    values = {LOSS_TOTAL: result.loss, LEARNING_RATE: rate, GRADIENT_NORM: result.gradient_norm}
    return values | result.exit_metrics(config.model.exit_layers)


def open_writer(run: Run, progress: Progress) -> contextlib.AbstractContextManager[MetricWriter | None]:
    """The metric writer of rank 0, nothing elsewhere; later values that a killed run left behind are dropped."""
    if not run.context.is_main:
        return contextlib.nullcontext()
    return MetricWriter(run.directory, run.config.max_steps, progress.step, progress.consumed_tokens)


def report(run: Run, writer: MetricWriter | None, progress: Progress, values: dict[str, float]) -> None:
    """Write one interval's scalars and the heartbeat, on rank 0."""
    if writer is not None:
        writer.write(progress.step, progress.consumed_tokens, values)
        run.directory.write_heartbeat(progress.step)


def report_validation(run: Run, writer: MetricWriter | None, progress: Progress, plan: BatchPlan) -> None:
    """Validate on the held-out rows, on every rank, and write the scalars."""
    if run.data.held_out is None:
        return
    batches = validation_batches(run.data.held_out, plan, run.config.intervals.validation_rows)
    values = validate(run.engine, batches, run.config.model.exit_layers, run.context)
    report(run, writer, progress, values)


def save(run: Run, progress: Progress) -> None:
    """Write a checkpoint with its probe, then remove those that are not to be kept."""
    intervals = run.config.intervals
    run.store.save(run.engine, progress, run_probe(run.engine, run.config, run.context))
    run.store.prune(intervals.keep_last_checkpoints, intervals.permanent_every_steps)
