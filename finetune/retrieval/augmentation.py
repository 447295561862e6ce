"""Augmentation of code: frequent words become random strings, so that matching names alone does not lower the loss."""

import collections
import re
import string

import numpy as np

WORD = re.compile(r"\w+")
# Paper section 4.1: "words (appearing more than twice and having at least three characters)"; keywords are words, too.
MORE_THAN_OCCURRENCES = 2
MIN_CHARACTERS = 3
_LETTERS = np.array(list(string.ascii_letters))


def frequent_words(code: str) -> list[str]:
    """Words of three characters or more that occur more than twice, in order of first occurrence."""
    counts = collections.Counter(WORD.findall(code))
    return [word for word, count in counts.items() if count > MORE_THAN_OCCURRENCES and len(word) >= MIN_CHARACTERS]


def replace_frequent_words(code: str, draw: np.random.Generator) -> str:
    """Replace every frequent word by a random string of its length, one string per word, none of them a word of the code."""
    taken = set(WORD.findall(code))
    replacements: dict[str, str] = {}
    for word in frequent_words(code):
        replacement = word
        while replacement in taken:
            replacement = "".join(draw.choice(_LETTERS, size=len(word)))
        taken.add(replacement)
        replacements[word] = replacement
    return WORD.sub(lambda match: replacements.get(match.group(), match.group()), code)


def augment(code: str, share: float, draw: np.random.Generator) -> str:
    """With probability `share` the code with its frequent words replaced, otherwise the code itself."""
    return replace_frequent_words(code, draw) if draw.random() < share else code
