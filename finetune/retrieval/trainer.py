"""One rank of the retrieval stage: model, optimiser and tokenizer, and the optimiser step.

Letters: P pairs of the whole batch, R rows (texts) of this rank, D width, E exits.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune.batches import INDICES, PackedBatch, balanced_shares, chunks_by_length, pack_rows
from finetune.checkpoints import TrainingState
from finetune.config import WHITENING, RetrievalConfig
from finetune.device import check_attention_dropout, precision
from finetune.distributed import World, gather_rows, sum_gradients
from finetune.retrieval.examples import Example, Examples
from finetune.retrieval.forward import embed_batch
from finetune.retrieval.gradient_cache import Chunk, backward, gather_chunks
from finetune.retrieval.log import StepReport
from finetune.retrieval.loss import RetrievalLoss, false_negatives, multi_exit_loss
from finetune.retrieval.optimization import LOGIT_SCALES, build_optimizer, optimizer_step
from finetune.retrieval.prompts import Prompt, encode_prompts
from mose.checkpoint.converted_checkpoint import load_pretrained, random_like, retrieval_from_pretrained, truncate_at
from mose.dataset.packed_sequence import TOKENS
from mose.errors import MoseError
from mose.model.exits import exit_weights
from mose.model.modeling_mose import ModularStarEncoderForRetrieval
from mose.model.projection_heads import start_from_states
from mose.seeding import derive_key
from mose.tokenizer import Tokenizer, load_tokenizer

ROWS_PER_DIMENSION = 32


def build_model(config: RetrievalConfig) -> ModularStarEncoderForRetrieval:
    """The checkpoint's trunk, or a random one of its shape, under new projection heads; with `exit_layer`, its layers up to it.

    Raises:
        MoseError: the checkpoint cannot be used, or has no such exit, or not that many dimensions.
    """
    source = load_pretrained(Path(config.checkpoint))
    exits, width = list(source.config.exit_layers), source.config.hidden_size
    if config.exit_layer not in (0, *exits):
        raise MoseError(f"exit_layer: {config.exit_layer}, expected 0 or an exit of {config.checkpoint}: {exits}")
    if config.dimensions and config.dimensions[-1] >= width:
        raise MoseError(f"dimensions: {config.dimensions[-1]}, expected fewer than the {width} of {config.checkpoint}")
    if config.exit_layer:
        source = truncate_at(source, config.exit_layer)
    if config.from_random:
        source = random_like(source.config, config.seed)
    model = retrieval_from_pretrained(source, config.seed)
    if config.logit_scale_learning_rate_factor:
        # Trained and saved as the weights are, and left out of the exported folder: only the loss needs it.
        scales_E = torch.full((len(source.config.exit_layers),), math.log(config.logit_scale))
        model.register_parameter(LOGIT_SCALES, torch.nn.Parameter(scales_E))
    return model


@dataclass
class Trainer:
    """One rank's model, optimiser and tokenizer, and the optimiser step."""

    config: RetrievalConfig
    model: ModularStarEncoderForRetrieval
    optimizer: torch.optim.AdamW
    tokenizer: Tokenizer
    device: torch.device
    world: World

    @classmethod
    def build(cls, config: RetrievalConfig, device: torch.device, world: World) -> "Trainer":
        """Load the checkpoint onto `device`.

        Raises:
            MoseError: the checkpoint cannot be used, or its attention dropout not with this device's kernels.
        """
        tokenizer = load_tokenizer(Path(config.checkpoint))
        model = build_model(config).to(device).train()
        if tokenizer.vocabulary_size > model.config.vocab_size:
            raise MoseError(
                f"{tokenizer.path}: {tokenizer.vocabulary_size} tokens, but the model has {model.config.vocab_size}; expected "
                "the tokenizer that it was trained with"
            )
        check_attention_dropout(model.config.attention_dropout, device, config.bf16)
        if config.logit_scale_learning_rate_factor:
            # Every rank computes the whole gradient of it; the sum over ranks would count it `size` times.
            model.get_parameter(LOGIT_SCALES).register_hook(lambda gradient: gradient / world.size)
        return cls(config, model, build_optimizer(model, config), tokenizer, device, world)

    @property
    def exit_layers(self) -> list[int]:
        """Layers of the model's exits."""
        return list(self.model.config.exit_layers)

    @property
    def state(self) -> TrainingState:
        """The tensors that a checkpoint saves."""
        return TrainingState(dict(self.model.named_parameters()), self.optimizer)

    @property
    def max_length(self) -> int:
        """Longest prompt in tokens."""
        return self.config.max_length or int(self.model.config.max_position_embeddings)

    @property
    def logit_scales(self) -> Tensor | float:
        """The factor of all similarities, or, if learned, of each exit's [E]."""
        if not self.config.logit_scale_learning_rate_factor:
            return self.config.logit_scale
        scales_E: Tensor = self.model.get_parameter(LOGIT_SCALES).exp()
        return scales_E

    def step(self, examples: Sequence[Example], step: int) -> StepReport:
        """One optimiser step over the P examples of the whole batch, of which this rank embeds its share."""
        started = time.perf_counter()
        prompts = _prompts(examples)
        shares = self._shares(prompts)
        excluded_PP = _false_negatives(examples).to(self.device)

        def loss(embeddings: list[Tensor]) -> tuple[Tensor, RetrievalLoss]:
            report = self._loss(embeddings, shares, excluded_PP)
            return report.total, report

        report = backward(self._embed, self._chunks(prompts, shares, step), loss)
        sum_gradients(self.model.parameters())
        norm = optimizer_step(self.model, self.optimizer, step, self.config)
        scales = tuple(self.logit_scales.tolist()) if isinstance(self.logit_scales, Tensor) else ()
        return StepReport(report, norm, len(examples), time.perf_counter() - started, scales)

    @torch.no_grad()
    def start_heads(self, examples: Examples) -> None:
        """Start the projection heads from the trunk's states of the first batches."""
        self.model.eval()
        # One batch gives a mean; a covariance of D dimensions needs many rows for each of them.
        rows = ROWS_PER_DIMENSION * self.model.config.hidden_size if self.config.head_start == WHITENING else 1
        tables = []
        for step in range(math.ceil(rows / (2 * self.config.batch_pairs))):
            prompts = _prompts(examples.at(step))
            chunks = self._chunks(prompts, self._shares(prompts), step)
            states = gather_chunks([self._states(chunk.batch) for chunk in chunks], chunks)
            tables.append([gather_rows(states_RD) for states_RD in states])
        sample = [torch.cat(states) for states in zip(*tables, strict=True)]
        start_from_states(self.model.projection_heads, sample, self.config.head_start == WHITENING)
        self.model.train()

    def _states(self, batch: PackedBatch) -> list[Tensor]:
        with precision(self.device, self.config.bf16):
            states = self.model.starEncoder2(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length)
        return [states_ND[batch.cu_seqlens[1:].long() - 1].float() for states_ND in states]

    @torch.no_grad()
    def embed(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """E embeddings [R, D] in evaluation mode of prompts that every rank knows; the ranks divide them among themselves."""
        # Ranks gather equally many rows: some repeat a prompt, and its rows are cut off again.
        padded = [*prompts, *[prompts[0]] * (-len(prompts) % self.world.size)]
        shares = self._shares(padded)
        self.model.eval()
        chunks = self._chunks(padded, shares, 0)
        tables = gather_chunks([[table.float() for table in self._embed(chunk.batch)] for chunk in chunks], chunks)
        self.model.train()
        return [_gather_shares(table_RD, shares)[: len(prompts)] for table_RD in tables]

    def _shares(self, prompts: Sequence[Prompt]) -> list[INDICES]:
        """Places of the prompts that each rank embeds; every rank computes the same."""
        costs = [prompt.estimated_tokens(self.max_length) for prompt in prompts]
        return balanced_shares(np.array(costs, dtype=np.int64), self.world.size)

    def _chunks(self, prompts: Sequence[Prompt], shares: Sequence[INDICES], step: int) -> list[Chunk]:
        own = [prompts[place] for place in shares[self.world.rank]]
        rows = encode_prompts(self.tokenizer, own, self.max_length)
        places = chunks_by_length([len(row) for row in rows], max_rows=2 * self.config.chunk_pairs)
        return [self._chunk(rows, places_B, step, number) for number, places_B in enumerate(places)]

    def _chunk(self, rows: Sequence[TOKENS], places_B: INDICES, step: int, number: int) -> Chunk:
        seed = derive_key(self.config.seed, "dropout", step, number, self.world.rank) >> 1
        return Chunk(torch.from_numpy(places_B), pack_rows([rows[place] for place in places_B]).to(self.device), seed)

    def _embed(self, batch: PackedBatch) -> list[Tensor]:
        with precision(self.device, self.config.bf16):
            return embed_batch(self.model, batch, self.exit_layers)

    def _loss(self, embeddings: list[Tensor], shares: Sequence[INDICES], excluded_PP: Tensor) -> RetrievalLoss:
        pairs, config = len(excluded_PP), self.config
        tables = [_gather_shares(table_RD, shares) for table_RD in embeddings]
        queries, targets = [table[:pairs] for table in tables], [table[pairs:] for table in tables]
        weights = exit_weights(self.exit_layers, self.model.config.num_hidden_layers)
        return multi_exit_loss(queries, targets, weights, self.logit_scales, excluded_PP, config.loss, config.dimensions)


def _prompts(examples: Sequence[Example]) -> list[Prompt]:
    return [example.query for example in examples] + [example.target for example in examples]


def _gather_shares(own_RD: Tensor, shares: Sequence[INDICES]) -> Tensor:
    """The rows of all ranks in the order of the prompts, from this rank's share of them, with gradient."""
    order = torch.from_numpy(np.argsort(np.concatenate(shares))).to(own_RD.device)
    return gather_rows(own_RD)[order]


def _false_negatives(examples: Sequence[Example]) -> Tensor:
    keys = [(example.query_key, example.target_key, example.description_key) for example in examples]
    return false_negatives(*torch.tensor(keys).unbind(dim=1))
