"""`mose-finetune search`: answers questions with the functions of a folder, or held-out questions with those of a pairs file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.embedding.config import SearchConfig
from finetune.embedding.encoder import QUERY, Encoder, make_prompts
from finetune.embedding.search.functions import Function, function_of_pair
from finetune.embedding.search.index import Hit, Index, Tables, bring_up_to_date, open_encoder, open_store
from finetune.embedding.search.page import counts, hit_of_folder, hit_of_pair, place_width, shown
from finetune.pair_files import read_pair_files
from mose.dataset.pairs import Pair
from mose.errors import MoseError
from mose.seeding import generator


@dataclass(frozen=True)
class Question:
    """A text, and the place of the function that it was taken from in the index; None where nobody knows the answer."""

    text: str
    own: int | None = None


def search(config: SearchConfig, folder: str | None, questions: Sequence[str]) -> None:
    """Answer questions from a folder, or draw questions of a pairs file and answer them, and print the answers.

    Raises:
        MoseError: there is nothing to search or to ask, or the checkpoint, folder, index or file cannot be used.
    """
    pairs = config.pair_files
    if bool(folder) == bool(pairs):
        raise MoseError("search: expected a folder and a question, or else --pairs FILE")
    if folder and not questions:
        raise MoseError(f"search: no question for {folder}, expected one or more texts after the folder")
    if pairs and (config.cascade or config.json or config.index):
        raise MoseError("search: cascade, json and index are for folders, expected none of them with --pairs")
    encoder = open_encoder(config)
    if config.cascade and len(encoder.exits) < 2:
        raise MoseError(f"cascade: exits {list(encoder.exits)}, expected two: one that recalls and a deeper one that orders")
    if folder:
        answer_from_folder(config, Path(folder), encoder, questions)
    else:
        functions, asked = held_out_questions(read_pair_files(pairs, config.split), config)
        print("\n".join(page(Index.build(encoder, functions), encoder, asked, config.top)))


def answer_from_folder(config: SearchConfig, folder: Path, encoder: Encoder, questions: Sequence[str]) -> None:
    """Bring the folder's index up to date, answer, and print."""
    if not folder.is_dir():
        raise MoseError(f"{folder}: no such folder, expected one with source files")
    with open_store(config, folder, encoder) as store:
        index = bring_up_to_date(store, folder, encoder)
        tables = embed_questions(encoder, questions)
        answers = [(number, *answer) for number in range(len(questions)) for answer in _answers(config, index, tables, number)]
        path = str(store.path)
    if config.json:
        found = [_plain(questions[number], label, hits, index) for number, label, hits in answers]
        print(json.dumps({"functions": len(index.functions), "index": path, "answers": found}, indent=1))
        return
    print("\n".join(_lines(index, questions, answers)))


def _answers(config: SearchConfig, index: Index, tables: Tables, number: int) -> Iterator[tuple[str, list[Hit]]]:
    """What answers a question, in words, and the functions found: each exit, or the cascade."""
    if config.cascade:
        hits = index.cascade(tables, number, config.cascade, config.top)
        yield f"exit {min(tables):02d} recalls {config.cascade:,}, exit {max(tables):02d} orders them", hits
        return
    for layer, table in tables.items():
        yield f"exit {layer:02d}", index.nearest(layer, table[number], config.top)


def _lines(index: Index, questions: Sequence[str], answers: Sequence[tuple[int, str, list[Hit]]]) -> Iterator[str]:
    yield f"{len(index.functions):,} functions"
    before = None
    width = place_width([index.functions[hit.function] for _, _, hits in answers for hit in hits])
    for number, label, hits in answers:
        if number != before:
            yield ""
            yield f"{number + 1}. {shown(questions[number])}"
        before = number
        yield f"   {label}"
        yield from (hit_of_folder(index.functions[hit.function], hit.score, width) for hit in hits)


def _plain(question: str, label: str, hits: Sequence[Hit], index: Index) -> dict[str, object]:
    found = []
    for hit in hits:
        function = index.functions[hit.function]
        path, _, line = function.place.rpartition(":")
        where = {"path": path, "line": int(line), "language": function.language}
        found.append({**where, "name": function.name, "signature": function.signature, "score": round(hit.score, 6)})
    return {"question": question, "by": label, "functions": found}


def held_out_questions(pairs: Sequence[Pair], config: SearchConfig) -> tuple[list[Function], list[Question]]:
    """The distinct functions of the pairs, and questions drawn with the seed, of as many repositories as there are."""
    # The place of each distinct code, in the order in which they first appear: equal codes are one function.
    places = {code: place for place, code in enumerate(dict.fromkeys(pair.code_a for pair in pairs))}
    firsts = {pair.code_a: pair for pair in reversed(pairs)}
    functions = [function_of_pair(firsts[code]) for code in places]
    turns: dict[str, int] = {}
    keyed = []
    for drawn in generator(config.seed, "search questions").permutation(len(pairs)).tolist():
        repository = pairs[drawn].repository
        turns[repository] = turns.get(repository, 0) + 1
        keyed.append((turns[repository], drawn))
    # The first of each repository, then the second of each: stable, so that within a turn the drawn order stays.
    chosen = [drawn for _, drawn in sorted(keyed, key=lambda item: item[0])[: config.questions]]
    return functions, [Question(pairs[drawn].nl, places[pairs[drawn].code_a]) for drawn in chosen]


def page(index: Index, encoder: Encoder, questions: Sequence[Question], top: int) -> Iterator[str]:
    """The lines that are printed: each question with the functions found at each exit, and how often the own one was found."""
    tables = embed_questions(encoder, [question.text for question in questions])
    ranks: dict[int, list[int]] = {layer: [] for layer in encoder.exits}
    yield f"{len(index.functions):,} functions"
    for number, question in enumerate(questions):
        yield ""
        yield f"{number + 1}. {shown(question.text)}"
        for layer in encoder.exits:
            order_K, cosines_K = index.order(layer, tables[layer][number])
            rank = int((order_K == question.own).argmax()) + 1 if question.own is not None else 0
            ranks[layer].append(rank)
            yield f"   exit {layer:02d}"
            for place in order_K[:top].tolist():
                yield hit_of_pair(index.functions[place], float(cosines_K[place]), place == question.own)
            if rank > top and question.own is not None:
                yield f"{hit_of_pair(index.functions[question.own], float(cosines_K[question.own]), True)}, place {rank:,}"
    if questions and questions[0].own is not None:
        yield ""
        yield from counts(ranks, top, len(index.functions))


def embed_questions(encoder: Encoder, questions: Sequence[str]) -> Tables:
    """Embeddings of questions at each exit, from one pass."""
    return encoder.encode_prompts(make_prompts(questions, QUERY))
