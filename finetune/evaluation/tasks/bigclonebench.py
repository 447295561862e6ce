"""The task `bigclonebench`: is a pair of Java functions a clone? (CodeXGLUE; paper Table 2)

A classification checkpoint answers by its larger logit; an embedding model by a cosine above a threshold, which is chosen on
the second file.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.evaluation.tasks.parts.judges import ClonePairs, Pairs
from finetune.evaluation.tasks.parts.problem import Benchmark, Options, Part, Texts
from finetune.evaluation.tasks.parts.readers import new_id, require_files, text_of
from finetune.retrieval.prompts import Prompt, code_prompt
from mose.checkpoint.retrieval_prompts import DOCUMENT_PROMPT
from mose.errors import MoseError, first_line
from mose.files.json_file import json_lines

Rows = dict[tuple[str, str], int]


def read_clones(paths: Sequence[Path], options: Options) -> list[Part]:
    """One part: the pairs of the third file, with the functions that the two files of pairs name.

    Raises:
        MoseError: not three files, an id is empty or occurs twice, a pair names a function that is not there, or the pairs for
            the threshold hold a pair that is scored.
    """
    require_files("bigclonebench", paths, ["functions", "pairs that choose the threshold", "pairs to score"])
    functions, prompts = _read_functions(paths[0])
    tuning, scored = (_read_pairs(path, functions, paths[0]) for path in paths[1:])
    shared = next((pair for pair in scored if pair in tuning), None)
    if shared is not None:
        raise MoseError(f"{paths[2]}: pair {' '.join(shared)} is also in {paths[1]}, expected pairs that choose no threshold")
    # Only what the pairs name is embedded: the published file holds more functions than a subsample of pairs.
    used = {name: None for pairs in (tuning, scored) for pair in pairs for name in pair}
    places = {name: place for place, name in enumerate(used)}
    return [
        Part(
            name="",
            documents=Texts("functions", DOCUMENT_PROMPT, [prompts[functions[name]] for name in used]),
            judge=ClonePairs(_pairs(tuning, places), _pairs(scored, places)),
            facts={"pairs": len(scored), "tuning_pairs": len(tuning), "documents": len(used)},
        )
    ]


def _read_functions(path: Path) -> tuple[dict[str, int], list[Prompt]]:
    places: dict[str, int] = {}
    prompts = []
    for where, row in json_lines(path, ("idx", "func")):
        new_id(where, "idx", text_of(where, row, "idx"), places)
        prompts.append(code_prompt(text_of(where, row, "func"), "java"))
    return places, prompts


def _read_pairs(path: Path, functions: dict[str, int], functions_path: Path) -> Rows:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MoseError(f"{path}: not a readable text file: {first_line(error)}") from None
    rows: Rows = {}
    for number, line in enumerate(lines, 1):
        where, words = f"{path}: line {number}", line.split()
        if len(words) != 3 or words[2] not in ("0", "1"):
            raise MoseError(f"{where}: {line[:60]!r}, expected `idx1 idx2 label` with label 0 or 1")
        unknown = next((word for word in words[:2] if word not in functions), None)
        if unknown is not None:
            raise MoseError(f"{where}: function {unknown[:60]} is not in {functions_path}")
        # The published files repeat some pairs; CodeXGLUE's evaluator counts each once, too.
        if rows.setdefault((words[0], words[1]), int(words[2])) != int(words[2]):
            raise MoseError(f"{where}: pair {words[0][:60]} {words[1][:60]} occurs with label 0 and label 1, expected one label")
    if not rows:
        raise MoseError(f"{path}: no pair, expected at least one")
    return rows


def _pairs(rows: Rows, places: dict[str, int]) -> Pairs:
    columns = np.array([(places[first], places[second], label) for (first, second), label in rows.items()], dtype=np.int64)
    return Pairs(columns[:, 0], columns[:, 1], columns[:, 2])


BIGCLONEBENCH = Benchmark(
    name="bigclonebench",
    title="BigCloneBench",
    files="functions.jsonl, pairs.txt that choose the threshold, pairs.txt to score",
    measures={"f1": "F1", "precision": "precision", "recall": "recall"},
    read=read_clones,
)
