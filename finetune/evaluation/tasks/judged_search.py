"""The task `judged_search`: queries, a corpus and judgments in BEIR's form, as CoSQA and CoIR publish them (paper Table 3)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.evaluation.tasks.parts.judges import JudgedDocuments
from finetune.evaluation.tasks.parts.problem import Benchmark, Options, Part, Texts
from finetune.evaluation.tasks.parts.readers import check_split, new_id, require_files, text_of
from finetune.retrieval.prompts import Prompt, code_prompt, text_prompt
from mose.checkpoint.retrieval_prompts import DOCUMENT_PROMPT, QUERY_PROMPT
from mose.errors import MoseError, first_line
from mose.files.json_file import json_lines

_QRELS = ("query-id", "corpus-id", "score")


def read_judged(paths: Sequence[Path], options: Options) -> list[Part]:
    """One part: the queries that have a judgment, each against the whole corpus.

    Raises:
        MoseError: not three files, a line lacks a field or repeats an id, a judgment names a query or document that is not
            there, or is of another split.
    """
    require_files("judged_search", paths, ["corpus", "queries", "qrels"])
    corpus, queries, qrels = paths
    documents, document_places = _read_corpus(corpus)
    asked, query_places, splits = _read_queries(queries)
    judged = _read_qrels(qrels, query_places, document_places, (corpus, queries), options.split)
    for name in judged:
        if splits[name]:
            check_split(f"{queries}: query {name}", "split", splits[name], options.split)
    names = list(judged)
    drawn = [names[place] for place in options.draw_queries(len(names)).tolist()]
    return [
        Part(
            name="",
            queries=Texts("queries", QUERY_PROMPT, [asked[query_places[name]] for name in drawn]),
            documents=Texts("corpus", DOCUMENT_PROMPT, documents),
            judge=JudgedDocuments(
                [np.array(list(judged[name]), dtype=np.int64) for name in drawn],
                [np.array(list(judged[name].values()), dtype=np.int64) for name in drawn],
            ),
            facts={"queries": len(drawn), "documents": len(documents)},
        )
    ]


def _read_corpus(path: Path) -> tuple[list[Prompt], dict[str, int]]:
    places: dict[str, int] = {}
    documents: list[Prompt] = []
    for where, row in json_lines(path, ("_id", "text", "title", "language")):
        new_id(where, "_id", text_of(where, row, "_id"), places)
        title = row["title"] if isinstance(row["title"], str) else ""
        text = text_of(where, row, "text")
        language = row["language"] if isinstance(row["language"], str) else ""
        documents.append(code_prompt(f"{title}\n{text}" if title.strip() else text, language))
    if len(documents) < 2:
        raise MoseError(f"{path}: {len(documents)} documents, expected 2 or more to rank")
    return documents, places


def _read_queries(path: Path) -> tuple[list[Prompt], dict[str, int], dict[str, str]]:
    """Prompts, places by id, and the split that each id names (empty: none). A query with a language is code."""
    places: dict[str, int] = {}
    splits: dict[str, str] = {}
    asked: list[Prompt] = []
    for where, row in json_lines(path, ("_id", "text", "split", "language")):
        name = text_of(where, row, "_id")
        new_id(where, "_id", name, places)
        text = text_of(where, row, "text")
        asked.append(code_prompt(text, row["language"]) if isinstance(row["language"], str) else text_prompt(text))
        splits[name] = row["split"] if isinstance(row["split"], str) else ""
    return asked, places, splits


def _read_qrels(
    path: Path, queries: dict[str, int], documents: dict[str, int], files: tuple[Path, Path], split: str
) -> dict[str, dict[int, int]]:
    """Grade by document place by query id, in the file's order."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MoseError(f"{path}: not a readable text file: {first_line(error)}") from None
    header = lines[0].split("\t") if lines else []
    if tuple(header[:3]) != _QRELS:
        found = lines[0][:60] if lines else ""
        raise MoseError(f"{path}: line 1: {found!r}, expected the tab-separated header {' '.join(_QRELS)}")
    judged: dict[str, dict[int, int]] = {}
    for number, line in enumerate(lines[1:], 2):
        where, cells = f"{path}: line {number}", line.split("\t")
        if len(cells) != len(header):
            raise MoseError(f"{where}: {len(cells)} cells, expected the {len(header)} of the header")
        row = dict(zip(header, cells, strict=True))
        query, document, score = (row[name] for name in _QRELS)
        for name, known, file in (("query-id", queries, files[1]), ("corpus-id", documents, files[0])):
            if row[name] not in known:
                raise MoseError(f"{where}: {name}: {row[name][:60]!r} is not in {file}")
        if not (score.isascii() and score.isdigit() and len(score) < 4):
            raise MoseError(f"{where}: score: {score[:60]!r}, expected a whole number from 0")
        if "split" in row:
            check_split(where, "split", row["split"], split)
        grades = judged.setdefault(query, {})
        if documents[document] in grades:
            raise MoseError(f"{where}: {document[:60]!r} is judged twice for {query[:60]!r}, expected one judgment")
        grades[documents[document]] = int(score)
    if not judged:
        raise MoseError(f"{path}: no judgment, expected at least one")
    return judged


JUDGED_SEARCH = Benchmark(
    name="judged_search",
    title="Judged search",
    files="corpus.jsonl, queries.jsonl and qrels.tsv",
    measures={"ndcg_at_10": "NDCG@10"},
    read=read_judged,
)
