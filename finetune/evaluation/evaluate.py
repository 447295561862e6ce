"""Text-to-code retrieval of a fine-tuned model: every exit scored in one pass, baselines on the same candidates.

Letters: Q queries.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.config import EvaluationConfig
from finetune.device import pick_device
from finetune.evaluation.baselines import encode_pairs, rank_lexical, rank_trained
from finetune.evaluation.embedding import embed_rows
from finetune.evaluation.metrics import RANKS, bootstrap, chance_mrr, hits_at_1, reciprocal_ranks
from finetune.evaluation.ranking import Candidates, distinct_codes, draw_candidates, rank_embeddings
from finetune.evaluation.results import Evaluation, ExitScores, RankScores, exit_name, read_evaluation, write_evaluation
from finetune.evaluation.table import as_text, evaluation_table
from finetune.pair_files import read_pair_files
from mose.checkpoint.converted_checkpoint import load_retrieval
from mose.dataset.pairs import Pair
from mose.files.atomic_file import write_text
from mose.model.modeling_mose import ModularStarEncoderForRetrieval
from mose.model.size import encoder_parameters, flops_per_row
from mose.seeding import generator
from mose.tokenizer import load_tokenizer


def evaluate(config: EvaluationConfig) -> None:
    """Score a checkpoint, print the table, and write `evaluation.json` and `evaluation.txt`.

    Raises:
        MoseError: the checkpoint, the pairs or a compared evaluation cannot be used.
    """
    compared = {name: read_evaluation(path) for name, path in config.compared.items()}
    pairs = read_pair_files(config.pair_files, config.split)
    evaluation = score_checkpoint(config, pairs)
    text = as_text(evaluation_table(evaluation, compared))
    write_evaluation(Path(config.output), evaluation)
    write_text(Path(config.output) / "evaluation.txt", text)
    print(f"corpus: {evaluation.corpus:,} distinct codes of split {evaluation.split!r}, {_candidates_line(evaluation, config)}")
    print(text, end="")


def _candidates_line(evaluation: Evaluation, config: EvaluationConfig) -> str:
    if evaluation.candidates <= config.distractors:
        return f"fewer than {config.distractors + 1:,}: each query is ranked among all {evaluation.candidates:,}"
    return f"each query is ranked among its own code and {config.distractors:,} distractors"


def score_checkpoint(config: EvaluationConfig, pairs: Sequence[Pair]) -> Evaluation:
    """Scores of every exit and of the baselines, all on the same queries and candidates."""
    model = load_retrieval(Path(config.checkpoint))
    tokenizer = load_tokenizer(Path(config.checkpoint))
    queries = draw_queries([pair.repository for pair in pairs], config)
    firsts, places = distinct_codes([pair.code_a for pair in pairs])
    candidates = draw_candidates(places[queries], len(firsts), config.distractors, config.seed)
    asked, codes = [pairs[index] for index in queries], [pairs[index] for index in firsts]
    max_length = config.max_length or int(model.config.max_position_embeddings)
    rows = encode_pairs(tokenizer, asked, codes, max_length)
    tables = embed_rows(model, [*rows[0], *rows[1]], config.chunk_tokens, pick_device(config.device), config.bf16)
    exits = {
        exit_name(layer): rank_embeddings(candidates, table[: len(asked)], table[len(asked) :])
        for layer, table in zip(model.config.matryoshka_layers, tables, strict=True)
    }
    baselines = rank_lexical(candidates, asked, codes) | rank_trained(config, tokenizer, max_length, candidates, rows)
    flops_tokens = config.flops_tokens or round(float(np.mean([len(row) for row in rows[1]])))
    scored = Scored(config, queries, [pair.repository for pair in asked], exits, baselines)
    return _evaluation(scored, model, candidates, len(codes), flops_tokens)


def draw_queries(repositories: Sequence[str], config: EvaluationConfig) -> NDArray[np.int64]:
    """Places of the queries to score, ascending: at most so many of each repository, then at most so many in all."""
    places = np.arange(len(repositories))
    if config.max_queries_per_repository:
        shuffled = generator(config.seed, "queries of each repository").permutation(places)
        taken: Counter[str] = Counter()
        kept = []
        for place in shuffled.tolist():
            taken[repositories[place]] += 1
            if taken[repositories[place]] <= config.max_queries_per_repository:
                kept.append(place)
        places = np.array(kept, dtype=np.int64)
    if 0 < config.max_queries < len(places):
        places = generator(config.seed, "queries").choice(places, size=config.max_queries, replace=False)
    return np.sort(places)


@dataclass(frozen=True)
class Scored:
    """The queries that were scored, and the rank of each one's own code by exit and by baseline."""

    config: EvaluationConfig
    places_Q: NDArray[np.int64]
    repositories: list[str]
    exits: dict[str, RANKS]
    baselines: dict[str, RANKS]

    def scores(self, ranks_Q: RANKS) -> RankScores:
        """MRR and recall@1 with their intervals."""
        mrr, recall = (
            bootstrap(values_Q, self.config.seed, self.repositories)
            for values_Q in (reciprocal_ranks(ranks_Q), hits_at_1(ranks_Q))
        )
        return RankScores(mrr, recall)


def _exit_scores(model: ModularStarEncoderForRetrieval, layer: int, flops_tokens: int, scores: RankScores) -> ExitScores:
    gflops = flops_per_row(model.config, layer, flops_tokens) / 1e9
    return ExitScores(layer, encoder_parameters(model.config, layer), gflops, scores.mrr, scores.recall_at_1)


def _evaluation(
    scored: Scored, model: ModularStarEncoderForRetrieval, candidates: Candidates, corpus: int, flops_tokens: int
) -> Evaluation:
    config = scored.config
    layers = {exit_name(layer): layer for layer in model.config.matryoshka_layers}
    return Evaluation(
        checkpoint=config.checkpoint,
        pairs=tuple(str(path) for path in config.pair_files),
        split=config.split,
        seed=config.seed,
        queries=len(candidates.own_Q),
        repositories=len(set(scored.repositories)),
        corpus=corpus,
        candidates=candidates.count,
        flops_tokens=flops_tokens,
        chance_mrr=chance_mrr(candidates.count),
        exits={name: _exit_scores(model, layers[name], flops_tokens, scored.scores(r)) for name, r in scored.exits.items()},
        baselines={name: scored.scores(ranks_Q) for name, ranks_Q in scored.baselines.items()},
        query_places=scored.places_Q.tolist(),
        query_repositories=scored.repositories,
        ranks={name: ranks_Q.tolist() for name, ranks_Q in (scored.exits | scored.baselines).items()},
    )
