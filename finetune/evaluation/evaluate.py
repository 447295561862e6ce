"""Text-to-code retrieval of a fine-tuned model: every exit scored in one pass, TF-IDF on the same candidates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.config import EvaluationConfig
from finetune.device import pick_device
from finetune.evaluation.embedding import embed_rows
from finetune.evaluation.metrics import RANKS, Score, bootstrap, chance_mrr, hits_at_1, reciprocal_ranks
from finetune.evaluation.ranking import Candidates, distinct_codes, draw_candidates, rank_embeddings
from finetune.evaluation.results import Evaluation, ExitScores, exit_name, read_evaluation, write_evaluation
from finetune.evaluation.table import as_text, evaluation_table
from finetune.evaluation.tfidf import rank_tfidf
from finetune.pair_files import read_pair_files
from finetune.retrieval.prompts import code_prompt, encode_prompts, text_prompt
from mose.checkpoint.converted_checkpoint import load_retrieval
from mose.dataset.packed_sequence import TOKENS
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
    """Scores of every exit and of TF-IDF, all on the same queries and candidates."""
    model = load_retrieval(Path(config.checkpoint))
    queries = _draw_queries(len(pairs), config.max_queries, config.seed)
    firsts, places = distinct_codes([pair.code_a for pair in pairs])
    candidates = draw_candidates(places[queries], len(firsts), config.distractors, config.seed)
    asked, codes = [pairs[index] for index in queries], [pairs[index] for index in firsts]
    query_rows, code_rows = _encode(config, model, asked, codes)
    flops_tokens = config.flops_tokens or round(float(np.mean([len(row) for row in code_rows])))
    tables = embed_rows(model, [*query_rows, *code_rows], config.chunk_tokens, pick_device(config.device), config.bf16)
    exits = {}
    for layer, table in zip(model.config.exit_layers, tables, strict=True):
        ranks = rank_embeddings(candidates, table[: len(asked)], table[len(asked) :])
        exits[exit_name(layer)] = _exit_scores(model, layer, flops_tokens, _scores(ranks, config.seed))
    tfidf = _scores(rank_tfidf(candidates, [pair.nl for pair in asked], [pair.code_a for pair in codes]), config.seed)
    return _evaluation(config, candidates, len(codes), flops_tokens, exits, tfidf)


def _draw_queries(num_pairs: int, max_queries: int, seed: int) -> NDArray[np.int64]:
    if not 0 < max_queries < num_pairs:
        return np.arange(num_pairs)
    return np.sort(generator(seed, "queries").choice(num_pairs, size=max_queries, replace=False))


def _encode(
    config: EvaluationConfig, model: ModularStarEncoderForRetrieval, asked: Sequence[Pair], codes: Sequence[Pair]
) -> tuple[list[TOKENS], list[TOKENS]]:
    tokenizer = load_tokenizer(Path(config.checkpoint))
    max_length = config.max_length or model.config.max_position_embeddings
    queries = encode_prompts(tokenizer, [text_prompt(pair.nl) for pair in asked], max_length)
    return queries, encode_prompts(tokenizer, [code_prompt(pair.code_a, pair.lang_a) for pair in codes], max_length)


def _scores(ranks: RANKS, seed: int) -> tuple[Score, Score]:
    return bootstrap(reciprocal_ranks(ranks), seed), bootstrap(hits_at_1(ranks), seed)


def _exit_scores(model: ModularStarEncoderForRetrieval, layer: int, flops_tokens: int, scores: tuple[Score, Score]) -> ExitScores:
    gflops = flops_per_row(model.config, layer, flops_tokens) / 1e9
    return ExitScores(layer, encoder_parameters(model.config, layer), gflops, *scores)


def _evaluation(
    config: EvaluationConfig,
    candidates: Candidates,
    corpus: int,
    flops_tokens: int,
    exits: dict[str, ExitScores],
    tfidf: tuple[Score, Score],
) -> Evaluation:
    return Evaluation(
        checkpoint=config.checkpoint,
        pairs=tuple(str(path) for path in config.pair_files),
        split=config.split,
        seed=config.seed,
        queries=len(candidates.own_Q),
        corpus=corpus,
        candidates=candidates.count,
        flops_tokens=flops_tokens,
        chance_mrr=chance_mrr(candidates.count),
        exits=exits,
        tfidf_mrr=tfidf[0],
        tfidf_recall_at_1=tfidf[1],
    )
