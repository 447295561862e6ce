"""Embeddings of functions at several exits, kept in memory, and the functions nearest to a question.

Letters: K functions, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.config import SearchConfig
from finetune.device import pick_device
from finetune.embedding.search.functions import Function
from finetune.evaluation.embedding import embed_rows
from finetune.retrieval.prompts import Prompt, code_prompt, encode_prompts, text_prompt
from mose.checkpoint.converted_checkpoint import load_retrieval
from mose.errors import MoseError
from mose.model.modeling_mose import ModularStarEncoderForRetrieval
from mose.tokenizer import Tokenizer, load_tokenizer

Tables = dict[int, NDArray[np.float32]]


@dataclass(frozen=True)
class SearchEncoder:
    """A fine-tuned model that embeds texts at the chosen exits."""

    config: SearchConfig
    model: ModularStarEncoderForRetrieval
    tokenizer: Tokenizer
    exits: tuple[int, ...]

    @classmethod
    def open(cls, config: SearchConfig) -> "SearchEncoder":
        """Open the checkpoint; without `exits` in the config, take its shallowest and its deepest exit.

        Raises:
            MoseError: the folder is not a converted retrieval checkpoint, or has no such exit.
        """
        folder = Path(config.checkpoint)
        model = load_retrieval(folder)
        known = list(model.config.exit_layers)
        exits = config.exits or tuple(dict.fromkeys((known[0], known[-1])))
        for layer in exits:
            if layer not in known:
                raise MoseError(f"exits: {layer}: {folder} has exits {known}")
        return cls(config, model, load_tokenizer(folder), exits)

    def embed(self, prompts: Sequence[Prompt]) -> Tables:
        """Normalised embeddings [K, D] of prompts at each chosen exit, by its layer, from one pass."""
        config = self.config
        rows = encode_prompts(self.tokenizer, prompts, config.max_length or int(self.model.config.max_position_embeddings))
        tables = embed_rows(self.model, rows, config.chunk_tokens, pick_device(config.device), config.bf16)
        by_layer = dict(zip(self.model.config.exit_layers, tables, strict=True))
        return {layer: by_layer[layer] for layer in self.exits}


@dataclass(frozen=True)
class Index:
    """Functions and their embeddings [K, D] by exit."""

    functions: Sequence[Function]
    tables: Tables

    @classmethod
    def build(cls, encoder: SearchEncoder, functions: Sequence[Function]) -> "Index":
        """Embed the functions."""
        return cls(functions, encoder.embed([code_prompt(function.code, function.language) for function in functions]))

    def order(self, layer: int, question_D: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """All functions, nearest first (equal ones in their own order), and the cosine of each [K] in the functions' order."""
        cosines_K: NDArray[np.float32] = self.tables[layer] @ question_D
        order_K: NDArray[np.int64] = np.argsort(-cosines_K, kind="stable")
        return order_K, cosines_K


def embed_questions(encoder: SearchEncoder, questions: Sequence[str]) -> Tables:
    """Embeddings of questions at each chosen exit."""
    return encoder.embed([text_prompt(question) for question in questions])
