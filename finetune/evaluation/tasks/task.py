"""What an evaluation task declares, and the checkpoint that it scores.

Letters: R rows (texts), D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from finetune.config import EvaluationConfig
from finetune.device import pick_device
from finetune.evaluation.embedding import embed_rows
from finetune.evaluation.results import AnyResult, ExitCost
from finetune.retrieval.prompts import Prompt, encode_prompts
from mose.checkpoint.converted_checkpoint import load_retrieval
from mose.dataset.packed_sequence import TOKENS
from mose.model.modeling_mose import ModularStarEncoderForRetrieval
from mose.model.size import encoder_parameters, flops_per_row
from mose.run_directory import exit_name
from mose.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Task(Generic[AnyResult]):
    """One evaluation task; `mose-finetune evaluate` runs it, prints its table and writes its result."""

    name: str
    """The value of `task` in the config."""
    reads: str
    """What the files of the config's `pairs` hold, in a few words."""
    columns: Mapping[str, str]
    """Column titles of the table, by the field of an exit's scores that the column shows."""
    score: Callable[[EvaluationConfig], AnyResult]
    """Reads the files, opens the checkpoint and scores every exit."""
    read: Callable[[Path], AnyResult]
    """Reads an evaluation.json of this task, for `compare`."""
    title: Callable[[AnyResult], str]
    """The line above the table."""
    references: Callable[[AnyResult], Mapping[str, Sequence[str]]] = lambda result: {}
    """Rows below the exits by name, a cell for each column: baselines and chance."""
    note: Callable[[EvaluationConfig, AnyResult], str] = lambda config, result: ""
    """A line for the console on what was scored."""


@dataclass(frozen=True)
class Checkpoint:
    """A fine-tuned checkpoint as tasks use it: texts in, an embedding at every exit out."""

    config: EvaluationConfig
    model: ModularStarEncoderForRetrieval
    tokenizer: Tokenizer

    @classmethod
    def open(cls, config: EvaluationConfig) -> "Checkpoint":
        """Load model and tokenizer.

        Raises:
            MoseError: the folder is not a converted retrieval checkpoint.
        """
        return cls(config, load_retrieval(Path(config.checkpoint)), load_tokenizer(Path(config.checkpoint)))

    @property
    def max_length(self) -> int:
        """Longest prompt in tokens."""
        return self.config.max_length or int(self.model.config.max_position_embeddings)

    def encode(self, prompts: Sequence[Prompt]) -> list[TOKENS]:
        """Token rows of prompts."""
        return encode_prompts(self.tokenizer, prompts, self.max_length)

    def embed(self, rows: Sequence[TOKENS]) -> dict[int, NDArray[np.float32]]:
        """Normalised embeddings [R, D] at each exit by its layer, shallow to deep, from one pass over the rows."""
        config = self.config
        tables = embed_rows(self.model, rows, config.chunk_tokens, pick_device(config.device), config.bf16)
        return dict(zip(self.model.config.exit_layers, tables, strict=True))

    def costs(self, rows: Sequence[TOKENS]) -> tuple[int, dict[str, ExitCost]]:
        """The row length that costs are for (the config's, or else the mean of `rows`), and each exit's cost by its name."""
        tokens = self.config.flops_tokens or round(float(np.mean([len(row) for row in rows])))
        return tokens, {exit_name(layer): self._cost(layer, tokens) for layer in self.model.config.exit_layers}

    def _cost(self, layer: int, tokens: int) -> ExitCost:
        shape = self.model.config
        return ExitCost(layer, encoder_parameters(shape, layer), flops_per_row(shape, layer, tokens) / 1e9)


AnyTask = Task[Any]
