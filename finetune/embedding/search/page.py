"""The lines of answers on a terminal: of bounded width, and without anything that a terminal would obey."""

import re
from collections.abc import Iterator, Mapping, Sequence

from finetune.embedding.search.functions import Function
from mose.files.streams import escaped

# What `escaped` leaves and a line of a list cannot hold: line breaks, tabs, and characters of no width, which hide in a name.
_NOT_IN_A_LINE = re.compile(r"[\t\n\u200b-\u200d]")
_WIDTH = 118
_NAME_WIDTH = 34
_PLACE_WIDTH = 44
OWN = "<- asked for"


def place_width(functions: Sequence[Function]) -> int:
    """Characters that the places of functions take in a list."""
    return min(_PLACE_WIDTH, max((len(_in_line(function.place)) for function in functions), default=0))


def hit_of_folder(function: Function, score: float, width: int) -> str:
    """Score, `path:line` in `width` characters, and the signature with its class in front."""
    container = function.name.rpartition(".")[0]
    signature = f"{container}: {function.signature}" if container else function.signature or function.name
    # The end of a path says more than its beginning.
    place = _in_line(function.place)
    place = place if len(place) <= width else f"...{place[3 - width :]}"
    return f"     {score:+.2f}  {place:<{width}}  {shown(signature, _WIDTH - width - 14)}"


def hit_of_pair(function: Function, score: float, is_own: bool) -> str:
    """Score, name, and repository and path; the function that was asked for is marked."""
    name, place = shown(function.name, _NAME_WIDTH), shown(function.place, _WIDTH - _NAME_WIDTH - 30)
    return f"     {score:+.2f}  {name:<{_NAME_WIDTH}}  {place}{f'  {OWN}' if is_own else ''}"


def counts(ranks: Mapping[int, Sequence[int]], top: int, functions: int) -> Iterator[str]:
    """How often each exit found the function that was asked for."""
    for layer, found in ranks.items():
        first, near = sum(rank == 1 for rank in found), sum(rank <= top for rank in found)
        yield (
            f"exit {layer:02d}: the function asked for came first in {first} of {len(found)} questions, "
            f"among the first {top} in {near}"
        )
    yield f"chance: first in 1 of {functions:,}"


def shown(text: str, width: int = _WIDTH - 4) -> str:
    """Text on one line of at most `width` characters, without anything that a terminal would obey."""
    safe = _in_line(text)
    return safe if len(safe) <= width else f"{safe[: width - 3]}..."


def _in_line(text: str) -> str:
    return _NOT_IN_A_LINE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), escaped(text))
