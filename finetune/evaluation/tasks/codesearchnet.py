"""The task `codesearchnet`: find a function by its docstring, each language on its own (paper Table 1).

Reads CodeSearchNet's JSON lines or pairs written by `mose-data pairs`, one file per language or mixed.
"""

from collections.abc import Sequence
from pathlib import Path

from finetune.evaluation.ranking import distinct_codes, draw_candidates
from finetune.evaluation.tasks.parts.judges import OwnDocument
from finetune.evaluation.tasks.parts.problem import Benchmark, Options, Part, Texts
from finetune.pair_files import read_pair_files
from finetune.retrieval.prompts import code_prompt, text_prompt
from mose.checkpoint.retrieval_prompts import DOCUMENT_PROMPT, QUERY_PROMPT
from mose.dataset.pairs import Pair
from mose.errors import MoseError

OWN_MEASURES = {"mrr": "MRR", "ndcg": "NDCG", "recall_at_1": "R@1", "recall_at_10": "R@10"}


def read_languages(paths: Sequence[Path], options: Options) -> list[Part]:
    """One part per language, by name.

    Raises:
        MoseError: a file cannot be read, holds no pair of the split, or a language has fewer than two distinct codes.
    """
    if not paths:
        raise MoseError("tasks: codesearchnet: no file, expected one or more files of pairs")
    languages: dict[str, list[Pair]] = {}
    for pair in read_pair_files(paths, options.split):
        languages.setdefault(pair.lang_a.lower() or "code", []).append(pair)
    return [_part(language, languages[language], options) for language in sorted(languages)]


def _part(language: str, pairs: Sequence[Pair], options: Options) -> Part:
    queries = options.draw_queries(len(pairs))
    # Equal codes are one document: a copy of the right answer is no distractor.
    firsts, places = distinct_codes([pair.code_a for pair in pairs])
    candidates = draw_candidates(places[queries], len(firsts), options.distractors, options.seed)
    asked = [pairs[place] for place in queries.tolist()]
    return Part(
        name=language,
        queries=Texts(f"{language}-docstrings", QUERY_PROMPT, [text_prompt(pair.nl) for pair in asked]),
        documents=Texts(
            f"{language}-functions", DOCUMENT_PROMPT, [code_prompt(pairs[i].code_a, pairs[i].lang_a) for i in firsts]
        ),
        judge=OwnDocument(candidates),
        groups=[pair.repository for pair in asked],
        facts={"queries": len(asked), "documents": len(firsts), "candidates": candidates.count},
        note=few_candidates(candidates.count, options.distractors),
    )


def few_candidates(candidates: int, distractors: int) -> str:
    """What to say where there are fewer other documents than distractors were asked for."""
    if candidates > distractors:
        return ""
    return f"fewer than {distractors:,} other documents: each query is ranked among all {candidates:,}"


CODESEARCHNET = Benchmark(
    name="codesearchnet",
    title="CodeSearchNet",
    files="files of pairs (.jsonl, .jsonl.gz, .parquet)",
    measures=OWN_MEASURES,
    read=read_languages,
)
