"""The classification stage: from a converted pre-training checkpoint to one with a classification head at every exit.

Letters: B rows of a chunk, R rows of a split, E exits, C classes.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from finetune.batches import PackedBatch, chunks_by_length, pack_rows
from finetune.classification.evaluate import ClassificationScores, choose_thresholds, score_split, scores_table
from finetune.classification.examples import Example, ExampleOrder, Format, count_classes, read_examples
from finetune.classification.log import StepReport, TrainingLog
from finetune.classification.rows import encode_rows
from finetune.classification.scores import LABELS
from finetune.config import LINEAR, ClassificationConfig
from finetune.device import check_attention_dropout, pick_device, precision
from finetune.distributed import World, process_group, sum_gradients
from finetune.evaluation.results import EVALUATION_NAME
from finetune.evaluation.table import as_text
from mose.checkpoint.converted_checkpoint import (
    classification_from_pretrained,
    load_pretrained,
    random_like,
    write_checkpoint,
)
from mose.errors import MoseError
from mose.files.atomic_file import named_errors, write_json, write_text
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.exits import exit_weights
from mose.model.modeling_mose import ModularStarEncoder
from mose.model.tasks_mose import ModularStarEncoderForSequenceClassification
from mose.run_directory import RunDirectory
from mose.schedule import ScheduleConfig, learning_rate
from mose.seeding import derive_key
from mose.tokenizer import Tokenizer, load_tokenizer

CHECKPOINT_NAME = "checkpoint"
TABLE_NAME = "evaluation.txt"
# Rows that are tokenised at once when a split is scored.
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Data:
    """The examples of every split and the number of classes."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    classes: int


def train(config: ClassificationConfig) -> None:
    """Fine-tune, and write the run directory `config.output` with its `checkpoint` and the scores of every exit.

    Under torchrun every rank takes its share of each batch; the loss is the mean over the whole batch.

    Raises:
        MoseError: the checkpoint, the examples or the output cannot be used, another process writes into it, a value does not fit
            the others, or the loss is not finite.
    """
    device = pick_device(config.device)
    with process_group(device) as world, contextlib.ExitStack() as held:
        lock = held.enter_context(RunDirectory(Path(config.output)).hold()) if world.is_first else None
        if config.batch_rows < world.size:
            raise MoseError(f"batch_rows: {config.batch_rows}, expected one row or more for each of the {world.size} ranks")
        data = read_data(config)
        trainer = Trainer.build(config, data.classes, device, world)
        order = ExampleOrder(len(data.train), config.batch_rows, config.seed)
        log = TrainingLog.open(config, trainer.exit_layers) if world.is_first else None
        every = config.validate_every_steps
        for step in range(config.steps):
            report = trainer.step([data.train[index] for index in order.at(step)], step)
            if lock is not None:
                lock.check()
            if log is not None:
                log.add(step + 1, report)
            if every and (step + 1) % every == 0 and step + 1 < config.steps:
                logits_ERC, labels_R = trainer.predict(data.validation)
                if log is not None:
                    log.add_validation(step + 1, score_split(trainer.exit_layers, logits_ERC, labels_R, None))
        scores = trainer.score(data)
        if log is not None:
            log.add_validation(config.steps, scores.validation)
            finish(config, trainer, log, scores)


def read_data(config: ClassificationConfig) -> Data:
    """The examples that the config names; the labels of every split are classes of the training files."""
    form = Format(config.columns, config.label_column, Path(config.functions) if config.functions else None)
    examples = read_examples(config.train_files, form, config.num_classes or None)
    classes = config.num_classes or count_classes(examples, config.train_files)
    validation, test = (read_examples(files, form, classes) for files in (config.validation_files, config.test_files))
    return Data(examples, validation, test, classes)


def finish(config: ClassificationConfig, trainer: "Trainer", log: TrainingLog, scores: ClassificationScores) -> None:
    """Write the scores and the converted checkpoint, and print both."""
    log.close()
    splits = {"validation": scores.validation, "test": scores.test}
    text = "\n".join(as_text(scores_table(name, split)) for name, split in splits.items() if split is not None)
    write_json(log.run.path / EVALUATION_NAME, scores.as_dict())
    write_text(log.run.path / TABLE_NAME, text)
    facts = {
        "stage": "classification",
        "steps": config.steps,
        "batch_rows": config.batch_rows,
        "seed": config.seed,
        "from_random": config.from_random,
        "train": [str(path) for path in config.train_files],
        "classes": scores.classes,
        "thresholds": scores.thresholds,
        "last_metrics": log.last,
    }
    folder = log.run.path / CHECKPOINT_NAME
    with named_errors(folder):
        write_checkpoint(folder, trainer.model, Path(config.checkpoint), facts)
    print(text, end="")
    print(f"checkpoint: {folder}")


def open_checkpoint(folder: Path) -> tuple[ModularStarEncoder, Tokenizer]:
    """The pre-trained model and its tokenizer.

    Raises:
        MoseError: either cannot be used, the model lacks an exit that its config names, or the tokenizer has more tokens than the
            model has embeddings.
    """
    tokenizer, model = load_tokenizer(folder), load_pretrained(folder)
    config: ModularStarEncoderConfig = model.config
    layers, exits = config.num_hidden_layers, config.exit_layers
    if exits[-1] > layers:
        raise MoseError(f"{folder / 'config.json'}: matryoshka_layers: {exits}, expected exits in 1 to {layers}")
    if tokenizer.vocabulary_size > config.vocab_size:
        raise MoseError(
            f"{tokenizer.path}: {tokenizer.vocabulary_size} tokens, but the model has embeddings for {config.vocab_size}; "
            "expected the tokenizer of its pre-training"
        )
    return model, tokenizer


@contextlib.contextmanager
def dropout_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Draw dropout masks from `seed` inside the block; the outer generators keep their state."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass
class Trainer:
    """One rank's model, optimiser and tokenizer, the optimiser step, and predictions."""

    config: ClassificationConfig
    model: ModularStarEncoderForSequenceClassification
    optimizer: torch.optim.AdamW
    tokenizer: Tokenizer
    device: torch.device
    world: World

    @classmethod
    def build(cls, config: ClassificationConfig, classes: int, device: torch.device, world: World) -> "Trainer":
        """Load the checkpoint onto `device` and put heads on it; errors as in `open_checkpoint`."""
        source, tokenizer = open_checkpoint(Path(config.checkpoint))
        if config.from_random:
            source = random_like(source.config, config.seed)
        model = classification_from_pretrained(source, classes, config.seed).to(device).train()
        check_attention_dropout(model.config.attention_dropout, device, config.bf16)
        decays: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
        for parameter in model.parameters():
            decays[parameter.ndim > 1].append(parameter)
        groups = [{"params": found, "weight_decay": config.weight_decay * matrix} for matrix, found in decays.items()]
        return cls(config, model, torch.optim.AdamW(groups, lr=config.learning_rate), tokenizer, device, world)

    @property
    def exit_layers(self) -> list[int]:
        """Layers of the model's exits."""
        return list(self.model.config.exit_layers)

    @property
    def schedule(self) -> ScheduleConfig:
        """The learning rate's schedule: warm-up, then constant or linear."""
        end = self.config.steps if self.config.decay == LINEAR else 0
        return ScheduleConfig(self.config.learning_rate, self.config.warmup_steps, (), (), end)

    def step(self, examples: Sequence[Example], step: int) -> StepReport:
        """One optimiser step over the whole batch, of which this rank takes every `world.size`-th example.

        Raises:
            MoseError: the loss is not finite; every rank raises it, because the loss is that of all of them.
        """
        started = time.perf_counter()
        sums_2E = self.backward(examples, step)
        sum_gradients(self.model.parameters())
        losses_E, accuracies_E = (_summed(sums_2E, self.world) / len(examples)).cpu()
        total = float(losses_E @ self._weights_E())
        if not math.isfinite(total):
            raise MoseError(f"step {step + 1}: the loss is {total}; expected a finite one: look at learning_rate, warmup_steps")
        rate = learning_rate(step, self.schedule)
        norm = self._update(rate)
        return StepReport(total, losses_E, accuracies_E, norm, rate, len(examples), time.perf_counter() - started)

    def backward(self, examples: Sequence[Example], step: int) -> Tensor:
        """Add the gradient of this rank's share of a batch; returns its losses and numbers of hits at each exit, [2, E]."""
        own = examples[self.world.rank :: self.world.size]
        weights_E = self._weights_E().to(self.device)
        sums_2E = torch.zeros(2, len(weights_E), device=self.device)
        for number, (places_B, batch) in enumerate(self._chunks(own)):
            labels_B = torch.tensor([own[place].label for place in places_B], device=self.device)
            seed = derive_key(self.config.seed, "classification dropout", step, number, self.world.rank) >> 1
            with dropout_seed(seed, self.device):
                logits_EBC = self._logits(batch)
            losses_E = torch.stack([F.cross_entropy(logits_BC, labels_B, reduction="sum") for logits_BC in logits_EBC])
            # Divided by the rows of the whole batch, so that neither chunks nor ranks change the gradient.
            torch.autograd.backward((losses_E * weights_E).sum() / len(examples))
            sums_2E += torch.stack((losses_E.detach(), (logits_EBC.argmax(dim=-1) == labels_B).sum(dim=-1)))
        return sums_2E

    def _weights_E(self) -> Tensor:
        return torch.tensor(exit_weights(self.exit_layers, self.model.config.num_hidden_layers))

    def _update(self, rate: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clipping or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def score(self, data: Data) -> ClassificationScores:
        """Scores of every exit on the validation and test files, with thresholds from the former."""
        logits_ERC, labels_R = self.predict(data.validation)
        thresholds = choose_thresholds(logits_ERC, labels_R)
        validation = score_split(self.exit_layers, logits_ERC, labels_R, thresholds)
        test = score_split(self.exit_layers, *self.predict(data.test), thresholds) if data.test else None
        return ClassificationScores(data.classes, validation, test)

    @torch.no_grad()
    def predict(self, examples: Sequence[Example]) -> tuple[Tensor, LABELS]:
        """Logits [E, R, C] of every exit in float32 on the CPU, and the labels [R]; ranks share the rows."""
        self.model.eval()
        logits_ERC = torch.zeros(len(self.exit_layers), len(examples), self.model.config.num_labels, device=self.device)
        own = range(self.world.rank, len(examples), self.world.size)
        for start in range(0, len(own), ROWS_AT_ONCE):
            rows = own[start : start + ROWS_AT_ONCE]
            for places_B, batch in self._chunks([examples[row] for row in rows]):
                logits_ERC[:, [rows[place] for place in places_B]] = self._logits(batch)
        self.model.train()
        # A row that one rank computed is zero on every other one.
        return _summed(logits_ERC, self.world).cpu(), np.array([example.label for example in examples])

    def _logits(self, batch: PackedBatch) -> Tensor:
        with precision(self.device, self.config.bf16):
            logits = self.model.classify(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length)
        return torch.stack([logits_BC.float() for logits_BC in logits])

    def _chunks(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], PackedBatch]]:
        max_length = self.config.max_length or int(self.model.config.max_position_embeddings)
        rows = encode_rows(self.tokenizer, [example.texts for example in examples], max_length)
        for places_B in chunks_by_length([len(row) for row in rows], len(rows), self.config.chunk_tokens):
            yield places_B.tolist(), pack_rows([rows[place] for place in places_B]).to(self.device)


def _summed(values: Tensor, world: World) -> Tensor:
    """The sum over ranks."""
    if world.size > 1:
        dist.all_reduce(values)
    return values
