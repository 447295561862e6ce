"""The classification stage: from a converted pre-training checkpoint to one with a classification head at every exit.

Letters: R rows of a split, E exits, C classes.
"""

import contextlib
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.checkpoints import NEVER, RANKS, Progress, ResumePoint, TrainingCheckpoints, due, hold_output
from finetune.classification.evaluate import ClassificationScores, card_tasks, choose_thresholds, score_split, scores_table
from finetune.classification.examples import Example, ExampleOrder, Format, count_classes, read_examples
from finetune.classification.log import StepReport, TrainingLog
from finetune.classification.scores import LABELS
from finetune.classification.trainer import Trainer
from finetune.config import CONSTANT, ClassificationConfig
from finetune.device import pick_device
from finetune.distributed import World, any_rank, on_first, process_group
from mose.checkpoint.card_facts import CardFacts, CardResults, Fact, Stage, after_stage, read_card_facts, with_card
from mose.checkpoint.converted_checkpoint import write_checkpoint
from mose.config import to_plain
from mose.errors import MoseError
from mose.files.atomic_file import file_sha256, named_errors, write_json, write_text
from mose.files.lock import Holder, Lock
from mose.files.stop_signal import LauncherWatch, Process, StopSignal
from mose.files.streams import table_text
from mose.run_directory import EVALUATION_NAME, RunDirectory

CHECKPOINT_NAME, BEST_NAME, TABLE_NAME = "checkpoint", "best", "evaluation.txt"
# What may differ when a run is resumed: it changes no number of a step. Files of examples are compared by content.
FREE_FIELDS = (
    *("output", "checkpoint", "train", "validation", "test", "functions", "device", "log_every_steps"),
    *("checkpoint_every_steps", "keep_last_checkpoints", "validate_every_steps"),
)


@dataclass(frozen=True)
class Data:
    """The examples of every split and the number of classes."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    classes: int


@dataclass(frozen=True)
class Pending:
    """What a checkpoint between two lines of the log holds beside the tensors: the steps since the last line."""

    logged: list[StepReport]


@dataclass
class Run:
    """The objects that the training loop uses; `log` and `lock` are the first rank's."""

    config: ClassificationConfig
    world: World
    trainer: Trainer
    data: Data
    checkpoints: TrainingCheckpoints
    log: TrainingLog | None
    lock: Lock[Holder] | None
    stop: StopSignal
    progress: Progress
    validated: tuple[int, Tensor, LABELS] | None = None
    """Step, logits [E, R, C] and labels [R] of the last scoring of the validation files."""

    def save(self) -> None:
        """Write a checkpoint of the present step; every rank calls it."""
        state = asdict(Pending(self.log.reports if self.log is not None else []))
        self.checkpoints.save(replace(self.progress, state=state), self.trainer.state, self.config.keep_last_checkpoints)

    def restore(self, point: ResumePoint) -> None:
        """Continue from a checkpoint; every rank calls it.

        Raises:
            MoseError: it does not fit this model.
        """
        self.checkpoints.load(point, self.trainer.state)
        pending = point.stage_state(Pending)
        if self.log is not None:
            self.log.reports = pending.logged

    def predict_validation(self) -> tuple[Tensor, LABELS]:
        """Logits [E, R, C] and labels [R] of the validation files at the present step, computed once per step."""
        if self.validated is None or self.validated[0] != self.progress.step:
            self.validated = (self.progress.step, *self.trainer.predict(self.data.validation))
        return self.validated[1:]

    def scores(self) -> ClassificationScores:
        """Scores of every exit on the validation and test files, with thresholds from the former; every rank calls it."""
        logits_ERC, labels_R = self.predict_validation()
        thresholds, exits = choose_thresholds(logits_ERC, labels_R), self.trainer.exit_layers
        test = score_split(exits, *self.trainer.predict(self.data.test), thresholds) if self.data.test else None
        return ClassificationScores(self.data.classes, score_split(exits, logits_ERC, labels_R, thresholds), test)


def train(config: ClassificationConfig, resume: str = NEVER, launcher: tuple[Process, ...] = ()) -> bool:
    """Fine-tune (or resume), and write the run directory `config.output` with its `checkpoint`, its `best` and their scores.

    Under torchrun every rank takes its share of each batch; the loss is the mean over the whole batch. `resume` is `auto` or
    `never`. Returns False if a signal, or the end of the processes in `launcher`, ended it early; a checkpoint is then saved.

    Raises:
        MoseError: the checkpoint, the examples or the output cannot be used, another process writes into it, a value does not fit
            the others, the loss is not finite, or the run that is there is another one.
    """
    device = pick_device(config.device)
    with process_group(device) as world, contextlib.ExitStack() as held:
        directory = RunDirectory(Path(config.output))
        lock = hold_output(directory, world, held)
        if config.batch_rows < world.size:
            raise MoseError(f"batch_rows: {config.batch_rows}, expected one row or more for each of the {world.size} ranks")
        data = read_data(config)
        trainer = Trainer.build(config, data.classes, device, world)
        stop = held.enter_context(StopSignal())
        held.enter_context(LauncherWatch(launcher, stop))
        checkpoints = TrainingCheckpoints(directory, world, on_first(world, lambda: identity_of(config, trainer)))
        point = checkpoints.select(resume)
        checkpoints.begin()
        progress = point.manifest.progress if point is not None else Progress(0)
        log = TrainingLog.open(config, trainer.exit_layers, progress.step) if world.is_first else None
        if log is not None:
            # Also where an error ends the run: a bar that is not removed hides the terminal's cursor.
            held.callback(log.close)
        run = Run(config, world, trainer, data, checkpoints, log, lock, stop, progress)
        if point is not None:
            run.restore(point)
        finished = loop(run)
        if log is not None:
            log.close()
        if finished:
            finish(run)
        return finished


def read_data(config: ClassificationConfig) -> Data:
    """The examples that the config names; the labels of every split are classes of the training files."""
    form = Format(config.columns, config.label_column, Path(config.functions) if config.functions else None)
    examples = read_examples(config.train_files, form, config.num_classes or None)
    classes = config.num_classes or count_classes(examples, config.train_files)
    validation, test = (read_examples(files, form, classes) for files in (config.validation_files, config.test_files))
    return Data(examples, validation, test, classes)


def identity_of(config: ClassificationConfig, trainer: Trainer) -> dict[str, Any]:
    """What must be equal for a run to continue: the config's values, tokenizer, classes, examples, and, for equal bits, ranks."""
    # With a constant rate the last step decides nothing before it, and a run may be made longer.
    free = (*FREE_FIELDS, "steps") if config.decay == CONSTANT else FREE_FIELDS
    values = {name: value for name, value in to_plain(config).items() if name not in free}
    functions = (Path(config.functions),) if config.functions else ()
    files = {"train": (*config.train_files, *functions), "validation": config.validation_files}
    values |= {name: [file_sha256(path) for path in paths] for name, paths in files.items()}
    classes = trainer.model.config.num_labels
    return values | {"num_classes": classes, "tokenizer": trainer.tokenizer.fingerprint(), RANKS: trainer.world.size}


def loop(run: Run) -> bool:
    """Run the steps that are left; log, validate and save at their intervals. Returns False if a signal ended the run."""
    config, begun = run.config, run.progress.step
    order = ExampleOrder(len(run.data.train), config.batch_rows, config.seed)
    for step in range(begun, config.steps):
        if any_rank(run.world, run.stop.requested, run.trainer.device):
            if step > begun and not due(step, config.checkpoint_every_steps, config.steps):
                run.save()
            if run.world.is_first:
                print(f"stopped {run.stop.reason} after step {step}; the same command resumes it", file=sys.stderr, flush=True)
            return False
        report = run.trainer.step([run.data.train[index] for index in order.at(step)], step)
        if run.lock is not None:
            run.lock.check()
        run.progress = replace(run.progress, step=step + 1)
        if run.log is not None:
            run.log.add(step + 1, report)
        is_best = due(step + 1, config.validate_every_steps, config.steps) and validate(run)
        if is_best or due(step + 1, config.checkpoint_every_steps, config.steps):
            run.save()
    return True


def validate(run: Run) -> bool:
    """Log the scores of the validation files, and find whether the mean F1 over the exits is the best so far."""
    split = score_split(run.trainer.exit_layers, *run.predict_validation(), None)
    if run.log is not None:
        run.log.add_validation(run.progress.step, split)
    best = run.progress
    if best.best_step and split.mean_f1 <= best.best_score:
        return False
    run.progress = replace(best, best_step=best.step, best_score=split.mean_f1)
    return True


def finish(run: Run) -> None:
    """Score and write the model of the last step and that of the best validation; every rank calls it."""
    progress, output = run.progress, Path(run.config.output)
    scores = run.scores()
    splits = {"validation": scores.validation, "test": scores.test}
    text = "\n".join(table_text(scores_table(name, split)) for name, split in splits.items() if split is not None)

    def write() -> None:
        write_json(output / EVALUATION_NAME, scores.as_dict())
        write_text(output / TABLE_NAME, text)
        print(text, end="")
        export(run, CHECKPOINT_NAME, scores)

    on_first(run.world, write)
    # Last: it replaces the weights of the last step.
    if progress.best_step != progress.step:
        run.checkpoints.load(run.checkpoints.run.checkpoint(progress.best_step), run.trainer.state)
        run.progress = replace(progress, step=progress.best_step)
        scores = run.scores()
    on_first(run.world, lambda: export(run, BEST_NAME, scores))


def export(run: Run, name: str, scores: ClassificationScores) -> None:
    """Write the present model as the converted checkpoint `name`, unless it is there."""
    config, folder = run.config, Path(run.config.output) / name
    facts = {
        "stage": "classification",
        "steps": run.progress.step,
        "batch_rows": config.batch_rows,
        "seed": config.seed,
        "from_random": config.from_random,
        "train": [str(path) for path in config.train_files],
        "classes": scores.classes,
        "thresholds": scores.thresholds,
        "scores": scores.as_dict(),
        "last_metrics": run.log.last if run.log is not None else {},
    }
    if not folder.exists():
        with named_errors(folder):
            card = with_card(facts, card_of(config, run.progress.step, len(run.data.train)))
            write_checkpoint(folder, run.trainer.model, Path(config.checkpoint), card, CardResults(card_tasks(scores)))
    print(f"{name}: {folder}")


def card_of(config: ClassificationConfig, step: int, examples: int) -> CardFacts:
    """What the card says about this stage."""
    rows = {
        "run": Path(config.output).resolve().name,
        "began with": "random weights" if config.from_random else Path(config.checkpoint).resolve().name,
        "optimiser steps": f"{step:,} of {config.batch_rows:,} examples",
        "peak learning rate, seed": f"{config.learning_rate:g}, {config.seed}",
    }
    files = {"training": config.train_files, "validation": config.validation_files, "test": config.test_files}
    data = [Fact("training examples", f"{examples:,}")]
    data += [Fact(f"{what} file {path.name}", f"SHA-256 {file_sha256(path)}") for what, paths in files.items() for path in paths]
    trunk = None if config.from_random else read_card_facts(Path(config.checkpoint))
    stage = Stage("Fine-tuning for classification", tuple(Fact(*row) for row in rows.items()))
    return after_stage(trunk, f"{rows['run']}, step {step:,}", stage, tuple(data))
