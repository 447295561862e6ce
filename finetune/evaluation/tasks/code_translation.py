"""The task `code_translation`: find a method's counterpart in the other language, Java to C# and back (paper Table 1)."""

from collections.abc import Sequence
from pathlib import Path

from finetune.evaluation.ranking import distinct_codes, draw_candidates
from finetune.evaluation.tasks.codesearchnet import OWN_MEASURES, few_candidates
from finetune.evaluation.tasks.parts.judges import OwnDocument
from finetune.evaluation.tasks.parts.problem import Benchmark, Options, Part, Texts
from finetune.evaluation.tasks.parts.readers import check_split, new_id, require_files, text_of
from finetune.retrieval.prompts import Prompt, code_prompt
from mose.checkpoint.retrieval_prompts import DOCUMENT_PROMPT
from mose.files.json_file import json_lines

_FIELDS = ("id", "java", "cs")
_LANGUAGES = {"java": "java", "cs": "c#"}


def read_translations(paths: Sequence[Path], options: Options) -> list[Part]:
    """Two parts, one per direction, over the distinct methods of each language.

    Raises:
        MoseError: not one file, or a line lacks a field, repeats an id, or is of another split.
    """
    require_files("code_translation", paths, ["JSON lines with id, java and cs"])
    seen: dict[str, int] = {}
    sides: dict[str, list[str]] = {side: [] for side in _LANGUAGES}
    for where, row in json_lines(paths[0], _FIELDS):
        name = text_of(where, row, "id")
        new_id(where, "id", name, seen)
        check_split(where, "id", name.partition("-")[0], options.split)
        for side, codes in sides.items():
            codes.append(text_of(where, row, side))
    return [_part(sides, "java", "cs", options), _part(sides, "cs", "java", options)]


def _part(sides: dict[str, list[str]], source: str, target: str, options: Options) -> Part:
    asked = options.draw_queries(len(sides[source]))
    source_firsts, source_places = distinct_codes(sides[source])
    target_firsts, target_places = distinct_codes(sides[target])
    candidates = draw_candidates(target_places[asked], len(target_firsts), options.distractors, options.seed)
    return Part(
        name=f"{source} to {target}",
        # Both lists are embedded as documents: the same embeddings serve both directions.
        queries=Texts(source, DOCUMENT_PROMPT, _prompts(sides, source, source_firsts)),
        documents=Texts(target, DOCUMENT_PROMPT, _prompts(sides, target, target_firsts)),
        query_places=source_places[asked],
        judge=OwnDocument(candidates),
        facts={"queries": len(asked), "documents": len(target_firsts), "candidates": candidates.count},
        note=few_candidates(candidates.count, options.distractors),
    )


def _prompts(sides: dict[str, list[str]], side: str, firsts: Sequence[int]) -> list[Prompt]:
    return [code_prompt(sides[side][place], _LANGUAGES[side]) for place in firsts]


CODE_TRANSLATION = Benchmark(
    name="code_translation",
    title="Code translation",
    files="one file of JSON lines with id, java and cs",
    measures=OWN_MEASURES,
    read=read_translations,
)
