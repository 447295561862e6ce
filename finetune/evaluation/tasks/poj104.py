"""The task `poj104`: find the other programs that solve the same problem (CodeXGLUE; paper Table 1, Fig. 1b)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.evaluation.tasks.parts.judges import SameLabel
from finetune.evaluation.tasks.parts.problem import Benchmark, Options, Part, Texts
from finetune.evaluation.tasks.parts.readers import new_id, require_files, text_of
from finetune.retrieval.prompts import Prompt, code_prompt
from mose.checkpoint.retrieval_prompts import DOCUMENT_PROMPT
from mose.errors import MoseError
from mose.files.json_file import json_lines

_FIELDS = ("label", "index", "code")


def read_programs(paths: Sequence[Path], options: Options) -> list[Part]:
    """One part: every program is a query against all others, as CodeXGLUE ranks them.

    Raises:
        MoseError: not one file, or a line lacks a field or repeats an index, or a label has one program only.
    """
    require_files("poj104", paths, ["JSON lines with label, index and code"])
    seen: dict[str, int] = {}
    labels: list[str] = []
    prompts: list[Prompt] = []
    for where, row in json_lines(paths[0], _FIELDS):
        new_id(where, "index", str(text_of(where, row, "index")), seen)
        labels.append(text_of(where, row, "label"))
        prompts.append(code_prompt(text_of(where, row, "code"), "c++"))
    names, labels_K, counts = np.unique(np.array(labels), return_inverse=True, return_counts=True)
    if not labels or counts.min() < 2:
        alone = f"{str(names[counts.argmin()])!r} has one program only" if labels else "no line"
        raise MoseError(f"{paths[0]}: label: {alone}, expected two programs or more of each label")
    places = options.draw_queries(len(labels))
    return [
        Part(
            name="",
            documents=Texts("programs", DOCUMENT_PROMPT, prompts),
            query_places=places,
            judge=SameLabel(labels_K.astype(np.int64), places),
            groups=[labels[place] for place in places.tolist()],
            facts={"queries": len(places), "documents": len(labels), "labels": len(names)},
        )
    ]


POJ104 = Benchmark(
    name="poj104",
    title="POJ-104",
    files="one file of JSON lines with label, index and code",
    measures={"map_at_r": "MAP@R"},
    read=read_programs,
)
