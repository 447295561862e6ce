"""One rank of the retrieval stage: model, optimiser and tokenizer, and the optimiser step.

Letters: P pairs of the whole batch, R rows (texts) of this rank, D width, E exits.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from finetune.batches import INDICES, PackedBatch, chunks_by_length, pack_rows
from finetune.checkpoints import TrainingState
from finetune.config import WHITENING, RetrievalConfig
from finetune.device import precision
from finetune.distributed import World, gather_rows, sum_gradients
from finetune.retrieval.examples import Example, Examples
from finetune.retrieval.gradient_cache import Chunk, backward, gather_chunks
from finetune.retrieval.log import StepReport
from finetune.retrieval.loss import RetrievalLoss, false_negatives, multi_exit_loss
from finetune.retrieval.optimization import build_optimizer, optimizer_step
from finetune.retrieval.prompts import Prompt, encode_prompts
from mose.checkpoint.converted_checkpoint import load_pretrained, random_like, retrieval_from_pretrained
from mose.dataset.packed_sequence import TOKENS
from mose.errors import MoseError
from mose.model.attention_mose import TORCH_VARLEN, choose_backend
from mose.model.exits import exit_weights
from mose.model.modeling_mose import ModularStarEncoderForRetrieval
from mose.model.projection_heads import start_from_states
from mose.seeding import derive_key
from mose.tokenizer import Tokenizer, load_tokenizer

ROWS_PER_DIMENSION = 32


def build_model(config: RetrievalConfig) -> ModularStarEncoderForRetrieval:
    """The checkpoint's trunk, or a random one of its shape, under new projection heads."""
    source = load_pretrained(Path(config.checkpoint))
    if config.from_random:
        source = random_like(source.config, config.seed)
    return retrieval_from_pretrained(source, config.seed)


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
        _check_attention_dropout(model, device, config.bf16)
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

    def step(self, examples: Sequence[Example], step: int) -> StepReport:
        """One optimiser step over the P examples of the whole batch, of which this rank embeds its share."""
        started = time.perf_counter()
        chunks = self._chunks(examples, step)
        excluded_PP = _false_negatives(examples).to(self.device)

        def loss(embeddings: list[Tensor]) -> tuple[Tensor, RetrievalLoss]:
            report = self._loss(embeddings, excluded_PP)
            return report.total, report

        report = backward(self._embed, chunks, loss)
        sum_gradients(self.model.parameters())
        norm = optimizer_step(self.model, self.optimizer, step, self.config)
        return StepReport(report, norm, len(examples), time.perf_counter() - started)

    @torch.no_grad()
    def start_heads(self, examples: Examples) -> None:
        """Start the projection heads from the trunk's states of the first batches."""
        self.model.eval()
        # One batch gives a mean; a covariance of D dimensions needs many rows for each of them.
        rows = ROWS_PER_DIMENSION * self.model.config.hidden_size if self.config.head_start == WHITENING else 1
        tables = []
        for step in range(math.ceil(rows / (2 * self.config.batch_pairs))):
            chunks = self._chunks(examples.at(step), step)
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
        share = -(-len(prompts) // self.world.size)
        # Ranks gather equally many rows: the last ones repeat a prompt where they have fewer, and its rows are cut off again.
        padded = [*prompts, *[prompts[0]] * (share * self.world.size - len(prompts))]
        own = padded[self.world.rank * share : (self.world.rank + 1) * share]
        self.model.eval()
        chunks = self._chunks_of(own, 0)
        tables = gather_chunks([[table.float() for table in self._embed(chunk.batch)] for chunk in chunks], chunks)
        self.model.train()
        return [gather_rows(table_RD)[: len(prompts)] for table_RD in tables]

    def _chunks(self, examples: Sequence[Example], step: int) -> list[Chunk]:
        share = len(examples) // self.world.size
        own = examples[self.world.rank * share : (self.world.rank + 1) * share]
        return self._chunks_of([example.query for example in own] + [example.target for example in own], step)

    def _chunks_of(self, prompts: Sequence[Prompt], step: int) -> list[Chunk]:
        rows = encode_prompts(self.tokenizer, prompts, self.max_length)
        places = chunks_by_length([len(row) for row in rows], max_rows=2 * self.config.chunk_pairs)
        return [self._chunk(rows, places_B, step, number) for number, places_B in enumerate(places)]

    def _chunk(self, rows: Sequence[TOKENS], places_B: INDICES, step: int, number: int) -> Chunk:
        seed = derive_key(self.config.seed, "dropout", step, number, self.world.rank) >> 1
        return Chunk(torch.from_numpy(places_B), pack_rows([rows[place] for place in places_B]).to(self.device), seed)

    def _embed(self, batch: PackedBatch) -> list[Tensor]:
        with precision(self.device, self.config.bf16):
            return self.model.embed(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length)

    def _loss(self, embeddings: list[Tensor], excluded_PP: Tensor) -> RetrievalLoss:
        share = len(embeddings[0]) // 2
        queries = [gather_rows(table_RD[:share]) for table_RD in embeddings]
        targets = [gather_rows(table_RD[share:]) for table_RD in embeddings]
        weights = exit_weights(self.exit_layers, self.model.config.num_hidden_layers)
        return multi_exit_loss(queries, targets, weights, self.config.logit_scale, excluded_PP)


def _false_negatives(examples: Sequence[Example]) -> Tensor:
    keys = [(example.query_key, example.target_key, example.description_key) for example in examples]
    return false_negatives(*torch.tensor(keys).unbind(dim=1))


def _check_attention_dropout(model: ModularStarEncoderForRetrieval, device: torch.device, bf16: bool) -> None:
    dtype = torch.bfloat16 if bf16 and device.type == "cuda" else torch.float32
    dropout = model.config.attention_dropout
    if dropout and choose_backend(device, dtype) == TORCH_VARLEN:
        raise MoseError(
            f"config.json: attention_dropout: {dropout} needs flash-attn in bfloat16 on a GPU; install it, pass --bf16 false, "
            "or set it to 0"
        )
