"""One rank of the classification stage: model, optimiser and tokenizer, the optimiser step, and predictions.

Letters: B rows of a chunk, R rows of a split, E exits, C classes.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.batches import PackedBatch, chunks_by_length, pack_rows
from finetune.checkpoints import TrainingState
from finetune.classification.examples import Example
from finetune.classification.log import StepReport
from finetune.classification.rows import encode_rows
from finetune.classification.scores import LABELS
from finetune.config import LINEAR, ClassificationConfig
from finetune.device import check_attention_dropout, precision, seeded
from finetune.distributed import World, sum_gradients, summed
from mose.checkpoint.converted_checkpoint import classification_from_pretrained, load_pretrained, random_like
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.exits import exit_weights
from mose.model.modeling_mose import ModularStarEncoder
from mose.model.tasks_mose import ModularStarEncoderForSequenceClassification
from mose.schedule import ScheduleConfig, learning_rate
from mose.seeding import derive_key
from mose.tokenizer import Tokenizer, load_tokenizer

# Rows that are tokenised at once when a split is scored.
ROWS_AT_ONCE = 1024


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
    def state(self) -> TrainingState:
        """The tensors that a checkpoint saves."""
        return TrainingState(dict(self.model.named_parameters()), self.optimizer)

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
        losses_E, accuracies_E = (summed(sums_2E, self.world) / len(examples)).cpu()
        total = float(losses_E @ self._weights_E())
        if not math.isfinite(total):
            raise MoseError(f"step {step + 1}: the loss is {total}; expected a finite one: look at learning_rate, warmup_steps")
        rate = learning_rate(step, self.schedule)
        norm = self._update(rate)
        seconds = time.perf_counter() - started
        return StepReport(total, losses_E.tolist(), accuracies_E.tolist(), norm, rate, len(examples), seconds)

    def backward(self, examples: Sequence[Example], step: int) -> Tensor:
        """Add the gradient of this rank's share of a batch; returns its losses and numbers of hits at each exit, [2, E]."""
        own = examples[self.world.rank :: self.world.size]
        weights_E = self._weights_E().to(self.device)
        sums_2E = torch.zeros(2, len(weights_E), device=self.device)
        for number, (places_B, batch) in enumerate(self._chunks(own)):
            labels_B = torch.tensor([own[place].label for place in places_B], device=self.device)
            seed = derive_key(self.config.seed, "classification dropout", step, number, self.world.rank) >> 1
            with seeded(seed, self.device):
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
        return summed(logits_ERC, self.world).cpu(), np.array([example.label for example in examples])

    def _logits(self, batch: PackedBatch) -> Tensor:
        with precision(self.device, self.config.bf16):
            logits = self.model.classify(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length)
        return torch.stack([logits_BC.float() for logits_BC in logits])

    def _chunks(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], PackedBatch]]:
        max_length = self.config.max_length or int(self.model.config.max_position_embeddings)
        rows = encode_rows(self.tokenizer, [example.texts for example in examples], max_length)
        for places_B in chunks_by_length([len(row) for row in rows], len(rows), self.config.chunk_tokens):
            yield places_B.tolist(), pack_rows([rows[place] for place in places_B]).to(self.device)
