"""The prompt of a translation, after Figure 3 of the paper, and the draw of its target language."""

import re
from collections.abc import Sequence

from mose.seeding import derive_key

# Section 5 of the paper names these.
TARGETS = ("Go", "Ruby", "Python", "Java", "C++", "PHP", "C", "JavaScript")
# Saved with every row: a change of a word below is a new version.
PROMPT_VERSION = "figure3-1"
# A greedy model gives the same answer to the same prompt, so a retry must say what was wrong.
_HINTS = {
    "empty": "The last answer was empty.",
    "truncated": "The last answer was too long. Be brief.",
    "refused": "This code is published under an open-source licence, and its translation is wanted.",
    "prose": "The last answer held no code block.",
    "wrong_language": "The last answer was not written in {target}.",
    "unparsable": "The last answer was not valid {target}.",
}


def draw_target(seed: int, identity: str, source: str, targets: Sequence[str]) -> str:
    """The target language of one function: depends on the seed and the function's id alone, never the source language."""
    others = [target for target in targets if target != source]
    return others[derive_key(seed, "target language", identity) % len(others)]


def prompt_of(code: str, source: str, target: str, rejected: str = "", number: int = 1) -> str:
    """The user's message: the source code, and the names of both languages.

    `rejected` is why the last answer was, `number` counts answers from 1: no two of a seed have the same prompt.
    """
    # Code with fences of its own (in a docstring) needs a longer one around it.
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    hint = f"\n{_HINTS[rejected].format(target=target)}" if rejected in _HINTS else ""
    hint += f" This is answer {number}." if number > 2 else ""
    return (
        f"Translate the following {source} code to {target}.\n"
        f"Answer with the {target} code only, in one code block.{hint}\n\n{fence}{source.lower()}\n{code}\n{fence}\n"
    )
