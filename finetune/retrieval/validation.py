"""Validation of a retrieval run: MRR of each exit on held-out pairs, with which the best checkpoint is chosen.

Letters: Q queries, K distinct codes, D width, E exits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.config import RetrievalConfig
from finetune.pair_files import read_pair_files
from finetune.retrieval.prompts import Prompt, code_prompt, text_prompt
from finetune.retrieval.trainer import Trainer
from mose.dataset.pairs import Pair
from mose.errors import MoseError
from mose.run_directory import VALIDATION, exit_scalar
from mose.seeding import generator

MEAN_MRR = f"{VALIDATION}mrr"
_KIND = VALIDATION.rstrip("/")


@dataclass(frozen=True)
class Validation:
    """Q held-out texts, each ranked against the K distinct codes of all of them."""

    queries: list[Prompt]
    codes: list[Prompt]
    own_Q: Tensor
    """Place of each query's own code among the K."""
    other_answers_QK: Tensor
    """Codes of other pairs with the same description, which are no distractors."""

    @classmethod
    def of(cls, pairs: Sequence[Pair], most: int, seed: int) -> "Validation":
        """At most `most` of the pairs, drawn with the seed."""
        drawn = generator(seed, "validation queries").permutation(len(pairs))[:most]
        chosen = [pairs[index] for index in drawn.tolist()]
        places: dict[str, int] = {}
        own_Q = torch.tensor([places.setdefault(pair.code_a, len(places)) for pair in chosen])
        languages = {pair.code_a: pair.lang_a for pair in chosen}
        texts: dict[str, list[int]] = {}
        for pair, place in zip(chosen, own_Q.tolist(), strict=True):
            texts.setdefault(pair.nl, []).append(place)
        other_answers_QK = torch.zeros(len(chosen), len(places), dtype=torch.bool)
        for query, pair in enumerate(chosen):
            other_answers_QK[query, texts[pair.nl]] = True
        other_answers_QK[torch.arange(len(chosen)), own_Q] = False
        codes = [code_prompt(code, languages[code]) for code in places]
        return cls([text_prompt(pair.nl) for pair in chosen], codes, own_Q, other_answers_QK)

    def scores(self, trainer: Trainer) -> dict[str, float]:
        """MRR of each exit, `validation/exit_04/mrr` and so on, and their mean, `validation/mrr`; every rank calls it.

        Beside them, `validation/exit_04/mrr_64` for each of the leading `dimensions` that are trained.
        """
        tables = trainer.embed([*self.queries, *self.codes])
        scores, cut = {}, {}
        for layer, table in zip(trainer.exit_layers, tables, strict=True):
            rows_RD = table.cpu()
            scores[exit_scalar(_KIND, layer, "mrr")] = self._mrr(rows_RD)
            for width in trainer.config.dimensions:
                cut[exit_scalar(_KIND, layer, f"mrr_{width}")] = self._mrr(F.normalize(rows_RD[:, :width], dim=-1))
        return scores | cut | {MEAN_MRR: sum(scores.values()) / len(scores)}

    def reciprocal_ranks(self, rows_RD: Tensor) -> Tensor:
        """1 / rank of each query's own code [Q], from the embeddings of the queries, then of the codes."""
        queries_QD, codes_KD = rows_RD[: len(self.queries)], rows_RD[len(self.queries) :]
        similarities_QK = (queries_QD @ codes_KD.T).masked_fill(self.other_answers_QK, float("-inf"))
        own_Q1 = similarities_QK.gather(1, self.own_Q[:, None])
        # Ties count against the model, and NaN as the worst rank: a collapsed model must not look perfect.
        ranks_Q = (~(similarities_QK < own_Q1)).sum(dim=1)
        return 1.0 / ranks_Q.double()

    def _mrr(self, rows_RD: Tensor) -> float:
        return float(self.reciprocal_ranks(rows_RD).mean())


def open_validation(config: RetrievalConfig) -> Validation | None:
    """The held-out pairs of the files of `pairs`; None where there are none, or where no validation is asked for."""
    if not config.validate_every_steps:
        return None
    pairs: list[Pair] = []
    for path in config.pair_files:
        pairs += _held_out(path)
    return Validation.of(pairs, config.validation_queries, config.seed) if len(pairs) > 1 else None


def _held_out(path: Path) -> list[Pair]:
    try:
        return read_pair_files([path], "held_out")
    except MoseError:
        # The train split has been read from this file already: it is readable, and lacks the other split only.
        return []
