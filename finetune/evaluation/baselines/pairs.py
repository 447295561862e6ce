"""The baselines of docstring search: each ranks the same queries among the same candidates as the exits."""

from collections.abc import Sequence

from finetune.config import EvaluationConfig
from finetune.evaluation.baselines.bag import rank_bag, train_bag
from finetune.evaluation.baselines.lexical import rank_bm25, rank_tfidf
from finetune.evaluation.metrics import RANKS
from finetune.evaluation.ranking import Candidates
from finetune.pair_files import read_pair_files
from finetune.retrieval.prompts import code_prompt, encode_prompts, text_prompt
from mose.dataset.packed_sequence import TOKENS
from mose.dataset.pairs import TRAIN, Pair
from mose.tokenizer import Tokenizer

TFIDF, BM25, BAG = "TF-IDF", "BM25", "bag of embeddings"


def encode_pairs(
    tokenizer: Tokenizer, queries: Sequence[Pair], codes: Sequence[Pair], max_length: int
) -> tuple[list[TOKENS], list[TOKENS]]:
    """The token rows of the pairs' texts, and of other pairs' codes."""
    texts = encode_prompts(tokenizer, [text_prompt(pair.nl) for pair in queries], max_length)
    return texts, encode_prompts(tokenizer, [code_prompt(pair.code_a, pair.lang_a) for pair in codes], max_length)


def rank_lexical(candidates: Candidates, asked: Sequence[Pair], codes: Sequence[Pair]) -> dict[str, RANKS]:
    """Ranks of the baselines that learn nothing."""
    texts, snippets = [pair.nl for pair in asked], [pair.code_a for pair in codes]
    return {TFIDF: rank_tfidf(candidates, texts, snippets), BM25: rank_bm25(candidates, texts, snippets)}


def rank_trained(
    config: EvaluationConfig,
    tokenizer: Tokenizer,
    max_length: int,
    candidates: Candidates,
    rows: tuple[list[TOKENS], list[TOKENS]],
) -> dict[str, RANKS]:
    """Ranks of the bag of embeddings trained on the train split; none where `bag_steps` is 0."""
    if not config.bag_steps:
        return {}
    pairs = read_pair_files(config.pair_files, TRAIN)
    train_rows = encode_pairs(tokenizer, pairs, pairs, max_length)
    bag = train_bag(*train_rows, tokenizer.vocabulary_size, config.bag_steps, config.seed)
    return {BAG: rank_bag(bag, candidates, *rows)}
