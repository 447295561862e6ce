"""The retrieval stage: from a converted pre-training checkpoint to one with a projection head at every exit."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from finetune.checkpoints import NEVER, RANKS, Progress, ResumePoint, TrainingCheckpoints, due, hold_output
from finetune.config import CONSTANT, RANDOM, RetrievalConfig
from finetune.device import pick_device
from finetune.distributed import World, any_rank, on_first, process_group
from finetune.pair_files import read_pair_files
from finetune.retrieval.collapse import CollapseWatch
from finetune.retrieval.examples import Examples
from finetune.retrieval.log import StepRecord, TrainingLog
from finetune.retrieval.loss import LossRecord
from finetune.retrieval.trainer import Trainer
from finetune.retrieval.validation import MEAN_MRR, Validation, open_validation
from mose.checkpoint.card_facts import CardFacts, Fact, Stage, after_stage, read_card_facts, with_card
from mose.checkpoint.converted_checkpoint import write_checkpoint
from mose.config import to_plain
from mose.dataset.pairs import Pair
from mose.errors import MoseError
from mose.files.atomic_file import file_sha256, named_errors
from mose.files.lock import Holder, Lock
from mose.files.stop_signal import LauncherWatch, Process, StopSignal
from mose.run_directory import RunDirectory, exit_name

CHECKPOINT_NAME, BEST_NAME = "checkpoint", "best"
# What may differ when a run is resumed: it changes no number of a step. Files of pairs are compared by content.
FREE_FIELDS = (
    *("output", "checkpoint", "pairs", "device", "log_every_steps", "checkpoint_every_steps", "keep_last_checkpoints"),
    *("validate_every_steps", "validation_queries"),
)


@dataclass(frozen=True)
class Pending:
    """What a checkpoint between two lines of the log holds beside the tensors: the steps since the last line and the last look
    for a collapse, and exits that had collapsed then. With it the resumed run writes the same lines."""

    logged: list[StepRecord]
    watched: list[LossRecord]
    collapsed: list[int]


@dataclass
class Run:
    """The objects that the training loop uses; `log` and `lock` are the first rank's."""

    config: RetrievalConfig
    world: World
    trainer: Trainer
    examples: Examples
    validation: Validation | None
    checkpoints: TrainingCheckpoints
    watch: CollapseWatch
    log: TrainingLog | None
    lock: Lock[Holder] | None
    stop: StopSignal
    progress: Progress

    def save(self) -> None:
        """Write a checkpoint of the present step; every rank calls it."""
        logged = [report.record() for report in self.log.reports] if self.log is not None else []
        watched = [report.record() for report in self.watch.reports]
        state = asdict(Pending(logged, watched, sorted(self.watch.collapsed)))
        self.checkpoints.save(replace(self.progress, state=state), self.trainer.state, self.config.keep_last_checkpoints)

    def restore(self, point: ResumePoint) -> None:
        """Continue from a checkpoint; every rank calls it.

        Raises:
            MoseError: it does not fit this model.
        """
        self.checkpoints.load(point, self.trainer.state)
        pending = point.stage_state(Pending)
        self.watch.reports = [record.restored(self.trainer.device) for record in pending.watched]
        self.watch.collapsed = set(pending.collapsed)
        if self.log is not None:
            self.log.reports = [record.restored(self.trainer.device) for record in pending.logged]


def train(config: RetrievalConfig, resume: str = NEVER, launcher: tuple[Process, ...] = ()) -> bool:
    """Fine-tune (or resume), and write the run directory `config.output` with its `checkpoint` and, if validated, its `best`.

    Under torchrun every rank embeds its share of each batch; the loss is that of the whole batch. `resume` is `auto` or `never`.
    Returns False if a signal, or the end of the processes in `launcher`, ended it early; a checkpoint is then saved.

    Raises:
        MoseError: the checkpoint, the pairs or the output cannot be used, another process writes into it, a value does not fit
            the others, or the run that is there is another one.
        CollapseError: an exit's embeddings have become one point.
    """
    device = pick_device(config.device)
    with process_group(device) as world, contextlib.ExitStack() as held:
        directory = RunDirectory(Path(config.output))
        lock = hold_output(directory, world, held)
        if config.batch_pairs % world.size:
            raise MoseError(f"batch_pairs: {config.batch_pairs}, expected a multiple of the {world.size} ranks")
        pairs = read_pair_files(config.pair_files, "train")
        examples = Examples(pairs, config.batch_pairs, config.augment_share, config.seed, config.generic_instruction_share)
        trainer = Trainer.build(config, device, world)
        stop = held.enter_context(StopSignal())
        held.enter_context(LauncherWatch(launcher, stop))
        checkpoints = TrainingCheckpoints(directory, world, on_first(world, lambda: identity_of(config, trainer)))
        point = checkpoints.select(resume)
        if point is None and config.head_start != RANDOM:
            trainer.start_heads(examples)
        checkpoints.begin()
        progress = point.manifest.progress if point is not None else Progress(0)
        watch = CollapseWatch(trainer.exit_layers, config.log_every_steps, config.warmup_steps)
        log = TrainingLog.open(config, trainer.exit_layers, progress.step) if world.is_first else None
        if log is not None:
            # Also where an error ends the run: a bar that is not removed hides the terminal's cursor.
            held.callback(log.close)
        run = Run(config, world, trainer, examples, open_validation(config), checkpoints, watch, log, lock, stop, progress)
        if point is not None:
            run.restore(point)
        finished = loop(run)
        if log is not None:
            log.close()
        if finished:
            on_first(world, lambda: finish(run, pairs))
        return finished


def identity_of(config: RetrievalConfig, trainer: Trainer) -> dict[str, Any]:
    """What must be equal for a run to continue: the config's values, the tokenizer, the pairs, and, for equal bits, the ranks."""
    # With a constant rate the last step decides nothing before it, and a run may be made longer.
    free = (*FREE_FIELDS, "steps") if config.decay == CONSTANT else FREE_FIELDS
    values = {name: value for name, value in to_plain(config).items() if name not in free}
    digests = [file_sha256(path) for path in config.pair_files]
    return values | {"tokenizer": trainer.tokenizer.fingerprint(), "pairs": digests, RANKS: trainer.world.size}


def loop(run: Run) -> bool:
    """Run the steps that are left; log, validate and save at their intervals. Returns False if a signal ended the run."""
    config, begun = run.config, run.progress.step
    for step in range(begun, config.steps):
        if any_rank(run.world, run.stop.requested, run.trainer.device):
            if step > begun and not due(step, config.checkpoint_every_steps, config.steps):
                run.save()
            if run.world.is_first:
                print(f"stopped {run.stop.reason} after step {step}; the same command resumes it", file=sys.stderr, flush=True)
            return False
        report = run.trainer.step(run.examples.at(step), step)
        if run.lock is not None:
            run.lock.check()
        run.progress = replace(run.progress, step=step + 1)
        scores, is_best = validate(run)
        if run.log is not None:
            run.log.add(step + 1, report, scores)
        run.watch.add(step + 1, report.loss)
        if is_best or due(step + 1, config.checkpoint_every_steps, config.steps):
            run.save()
    return True


def validate(run: Run) -> tuple[dict[str, float], bool]:
    """The scores, empty where no validation is due, and whether they are the best so far."""
    step = run.progress.step
    if run.validation is None or not due(step, run.config.validate_every_steps, run.config.steps):
        return {}, False
    scores = run.validation.scores(run.trainer)
    is_best = not run.progress.best_step or scores[MEAN_MRR] > run.progress.best_score
    if is_best:
        run.progress = replace(run.progress, best_step=step, best_score=scores[MEAN_MRR])
    return scores, is_best


def languages_of(pairs: list[Pair]) -> list[str]:
    """Every language of the pairs, in lower case, as instructions have it."""
    return sorted({language.lower() for pair in pairs for language in (pair.lang_a, pair.lang_b) if language})


def finish(run: Run, pairs: list[Pair]) -> None:
    """Write the converted checkpoints of the last step and of the best validation, unless they are there."""
    config, progress, languages = run.config, run.progress, languages_of(pairs)
    run.trainer.model.config.languages = languages
    last = run.log.last if run.log is not None else {}
    facts = {
        "stage": "retrieval",
        "steps": progress.step,
        "batch_pairs": config.batch_pairs,
        "seed": config.seed,
        "from_random": config.from_random,
        "loss": config.loss,
        "dimensions": list(config.dimensions),
        "pairs": [str(path) for path in config.pair_files],
        "languages": languages,
        "last_metrics": last,
    }
    _export(run, CHECKPOINT_NAME, with_card(facts, card_of(run, progress.step, pairs, last)))
    if progress.best_step:
        # Last: it replaces the weights of the last step.
        if progress.best_step != progress.step:
            run.checkpoints.load(run.checkpoints.run.checkpoint(progress.best_step), run.trainer.state)
        # The log's last scores are those of the last step.
        scores = last if progress.best_step == progress.step else {}
        card = card_of(run, progress.best_step, pairs, scores | {MEAN_MRR: progress.best_score})
        _export(run, BEST_NAME, with_card(facts | {"steps": progress.best_step, MEAN_MRR: progress.best_score}, card))


def card_of(run: Run, step: int, pairs: Sequence[Pair], metrics: Mapping[str, Any]) -> CardFacts:
    """What the card says about this stage; `metrics` are the last of this step."""
    config = run.config
    rows = {
        "run": Path(config.output).resolve().name,
        "began with": "random weights" if config.from_random else Path(config.checkpoint).resolve().name,
        "optimiser steps": f"{step:,} of {config.batch_pairs:,} pairs",
        "loss, peak learning rate, seed": f"{config.loss}, {config.learning_rate:g}, {config.seed}",
    }
    if metrics.get(MEAN_MRR) is not None:
        rows["MRR of the validation, mean over exits"] = f"{metrics[MEAN_MRR]:.3f}"
    repositories = len({pair.repository for pair in pairs})
    data = [Fact("fine-tuning pairs", f"{len(pairs):,} of {repositories:,} repositories")]
    data += [Fact(f"file {path.name}", f"SHA-256 {file_sha256(path)}") for path in config.pair_files]
    stage = Stage("Fine-tuning for retrieval", tuple(Fact(*row) for row in rows.items()))
    trunk = None if config.from_random else read_card_facts(Path(config.checkpoint))
    card = after_stage(trunk, f"{rows['run']}, step {step:,}", stage, tuple(data))
    validated = {layer: metrics.get(f"validation/exit_{exit_name(layer)}/mrr") for layer in run.trainer.exit_layers}
    cells: dict[str, tuple[str, ...]] = {str(layer): (f"{mrr:.4f}",) for layer, mrr in validated.items() if mrr is not None}
    note = "MRR of the queries that training validates on"
    return replace(card, columns=("validation MRR",), cells=cells, note=note) if cells else card


def _export(run: Run, name: str, facts: dict[str, Any]) -> None:
    folder = Path(run.config.output) / name
    if not folder.exists():
        with named_errors(folder):
            write_checkpoint(folder, run.trainer.model, Path(run.config.checkpoint), facts)
    print(f"{name}: {folder}")
