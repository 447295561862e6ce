"""The task `docstring_search`: find a function by its docstring among other functions (paper section 6.1).

Letters: Q queries.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.config import EvaluationConfig
from finetune.evaluation.baselines.pairs import encode_pairs, rank_lexical, rank_trained
from finetune.evaluation.metrics import RANKS, bootstrap, chance_mrr, hits_at_1, reciprocal_ranks
from finetune.evaluation.ranking import Candidates, distinct_codes, draw_candidates, rank_embeddings
from finetune.evaluation.results import Evaluation, ExitCost, ExitScores, RankScores, read_evaluation
from finetune.evaluation.table import score_cell
from finetune.evaluation.tasks.task import Checkpoint, Task
from finetune.pair_files import read_pair_files
from mose.run_directory import exit_name
from mose.seeding import generator


def score_checkpoint(config: EvaluationConfig) -> Evaluation:
    """Scores of every exit and of the baselines, all on the same queries and candidates.

    Raises:
        MoseError: the checkpoint or the pairs cannot be used.
    """
    pairs = read_pair_files(config.pair_files, config.split)
    checkpoint = Checkpoint.open(config)
    queries = draw_queries([pair.repository for pair in pairs], config)
    firsts, places = distinct_codes([pair.code_a for pair in pairs])
    candidates = draw_candidates(places[queries], len(firsts), config.distractors, config.seed)
    asked, codes = [pairs[index] for index in queries], [pairs[index] for index in firsts]
    rows = encode_pairs(checkpoint.tokenizer, asked, codes, checkpoint.max_length)
    exits = {
        exit_name(layer): rank_embeddings(candidates, table[: len(asked)], table[len(asked) :])
        for layer, table in checkpoint.embed([*rows[0], *rows[1]]).items()
    }
    trained = rank_trained(config, checkpoint.tokenizer, checkpoint.max_length, candidates, rows)
    baselines = rank_lexical(candidates, asked, codes) | trained
    scored = Scored(config, queries, [pair.repository for pair in asked], exits, baselines)
    return _evaluation(scored, candidates, len(codes), *checkpoint.costs(rows[1]))


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


def _evaluation(
    scored: Scored, candidates: Candidates, corpus: int, flops_tokens: int, costs: Mapping[str, ExitCost]
) -> Evaluation:
    config = scored.config
    exits = {name: scored.scores(ranks_Q) for name, ranks_Q in scored.exits.items()}
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
        exits={name: ExitScores(**vars(costs[name]), **vars(scores)) for name, scores in exits.items()},
        baselines={name: scored.scores(ranks_Q) for name, ranks_Q in scored.baselines.items()},
        query_places=scored.places_Q.tolist(),
        query_repositories=scored.repositories,
        ranks={name: ranks_Q.tolist() for name, ranks_Q in (scored.exits | scored.baselines).items()},
    )


def _title(evaluation: Evaluation) -> str:
    drawn = f"the {evaluation.repositories:,} repositories" if evaluation.repositories > 1 else "queries"
    return f"{evaluation.queries:,} queries, each among {evaluation.candidates:,} candidates; 95 % intervals over {drawn}"


def _references(evaluation: Evaluation) -> dict[str, list[str]]:
    rows = {name: [score_cell(row.mrr), score_cell(row.recall_at_1)] for name, row in evaluation.baselines.items()}
    return {**rows, "chance": [f"{evaluation.chance_mrr:.4f}", f"{1 / evaluation.candidates:.4f}"]}


def _note(config: EvaluationConfig, evaluation: Evaluation) -> str:
    ranked = f"each query is ranked among its own code and {config.distractors:,} distractors"
    if evaluation.candidates <= config.distractors:
        ranked = f"fewer than {config.distractors + 1:,}: each query is ranked among all {evaluation.candidates:,}"
    return f"corpus: {evaluation.corpus:,} distinct codes of split {evaluation.split!r}, {ranked}"


DOCSTRING_SEARCH = Task(
    name="docstring_search",
    reads="pairs written by `mose-data pairs`",
    columns={"mrr": "MRR", "recall_at_1": "recall@1"},
    score=score_checkpoint,
    read=read_evaluation,
    title=_title,
    references=_references,
    note=_note,
)
