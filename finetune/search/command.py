"""`mose-finetune search`: answers questions with the functions of a folder, or held-out questions with those of a pairs file."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config import SearchConfig
from finetune.evaluation.ranking import distinct_codes
from finetune.pair_files import read_pair_files
from finetune.search.functions import Function, function_of_pair, functions_of_folder
from finetune.search.index import Index, SearchEncoder, embed_questions
from mose.dataset.pairs import Pair
from mose.errors import MoseError
from mose.files.streams import escaped
from mose.run_directory import exit_name
from mose.seeding import generator

# What `escaped` leaves and a line of a list cannot hold: line breaks, tabs, and characters of no width, which hide in a name.
_NOT_IN_A_LINE = re.compile(r"[\t\n\u200b-\u200d]")
_WIDTH = 118
_NAME_WIDTH = 34
OWN = "<- asked for"


@dataclass(frozen=True)
class Question:
    """A text, and the place of the function that it was taken from in the index; None where nobody knows the answer."""

    text: str
    own: int | None = None


def search(config: SearchConfig, folder: str | None, questions: Sequence[str]) -> None:
    """Answer questions from a folder, or draw questions of a pairs file and answer them, and print the answers.

    Raises:
        MoseError: there is nothing to search or to ask, or the checkpoint, folder or file cannot be used.
    """
    pairs = config.pair_files
    if bool(folder) == bool(pairs):
        raise MoseError("search: expected a folder and a question, or else --pairs FILE")
    if folder and not questions:
        raise MoseError(f"search: no question for {folder}, expected one or more texts after the folder")
    encoder = SearchEncoder.open(config)
    if folder:
        functions, asked = functions_of_folder(Path(folder)), [Question(text) for text in questions]
    else:
        functions, asked = held_out_questions(read_pair_files(pairs, config.split), config)
    index = Index.build(encoder, functions)
    print("\n".join(page(index, encoder, asked)))


def held_out_questions(pairs: Sequence[Pair], config: SearchConfig) -> tuple[list[Function], list[Question]]:
    """The distinct functions of the pairs, and questions drawn with the seed, of as many repositories as there are."""
    firsts, places = distinct_codes([pair.code_a for pair in pairs])
    functions = [function_of_pair(pairs[first]) for first in firsts]
    turns: dict[str, int] = {}
    keyed = []
    for drawn in generator(config.seed, "search questions").permutation(len(pairs)).tolist():
        repository = pairs[drawn].repository
        turns[repository] = turns.get(repository, 0) + 1
        keyed.append((turns[repository], drawn))
    # The first of each repository, then the second of each: stable, so that within a turn the drawn order stays.
    chosen = [drawn for _, drawn in sorted(keyed, key=lambda item: item[0])[: config.questions]]
    return functions, [Question(pairs[place].nl, int(places[place])) for place in chosen]


def page(index: Index, encoder: SearchEncoder, questions: Sequence[Question]) -> Iterator[str]:
    """The lines that are printed: each question with the functions found at each exit, and how often the own one was found."""
    tables = embed_questions(encoder, [question.text for question in questions])
    ranks: dict[int, list[int]] = {layer: [] for layer in encoder.exits}
    yield f"{len(index.functions):,} functions"
    for number, question in enumerate(questions):
        yield ""
        yield f"{number + 1}. {_shown(question.text, _WIDTH - 4)}"
        for layer in encoder.exits:
            order_K, cosines_K = index.order(layer, tables[layer][number])
            rank = int((order_K == question.own).argmax()) + 1 if question.own is not None else 0
            ranks[layer].append(rank)
            yield f"   exit {exit_name(layer)}"
            for place in order_K[: encoder.config.top].tolist():
                yield _hit(index.functions[place], float(cosines_K[place]), place == question.own)
            if rank > encoder.config.top and question.own is not None:
                yield f"{_hit(index.functions[question.own], float(cosines_K[question.own]), True)}, place {rank:,}"
    if questions and questions[0].own is not None:
        yield ""
        yield from _counts(ranks, encoder.config.top, len(index.functions))


def _hit(function: Function, cosine: float, is_own: bool) -> str:
    name, place = _shown(function.name, _NAME_WIDTH), _shown(function.place, _WIDTH - _NAME_WIDTH - 30)
    return f"     {cosine:+.2f}  {name:<{_NAME_WIDTH}}  {place}{f'  {OWN}' if is_own else ''}"


def _counts(ranks: dict[int, list[int]], top: int, functions: int) -> Iterator[str]:
    for layer, found in ranks.items():
        first, near = sum(rank == 1 for rank in found), sum(rank <= top for rank in found)
        yield (
            f"exit {exit_name(layer)}: the function asked for came first in {first} of {len(found)} questions, "
            f"among the first {top} in {near}"
        )
    yield f"chance: first in 1 of {functions:,}"


def _shown(text: str, width: int) -> str:
    """Text on one line of at most `width` characters, without anything that a terminal would obey."""
    safe = _NOT_IN_A_LINE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), escaped(text))
    return safe if len(safe) <= width else f"{safe[: width - 3]}..."
