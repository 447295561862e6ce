"""Documents of tests: text that looks like code, and copies of it with a chosen number of changes."""

import functools

import numpy as np

WORDS = """self return value index count name path open close read write row column task key list find first last size""".split()  # noqa: SIM905


@functools.cache
def code(seed: int, words: int = 150) -> str:
    """A text of identifiers; two of different seeds share few shingles."""
    random = np.random.default_rng(seed)
    names = [f"{random.choice(WORDS)}_{random.integers(1000)}" for _ in range(words)]
    return " ".join(names)


def changed(text: str, words: int, seed: int = 0) -> str:
    """The text with so many of its words replaced."""
    random = np.random.default_rng([seed, len(text)])
    parts = text.split()
    for place in random.choice(len(parts), min(words, len(parts)), replace=False):
        parts[place] = f"changed_{random.integers(10_000)}"
    return " ".join(parts)


def shingles(text: str) -> set[str]:
    """The reference: the set of 5-grams of a normalised text."""
    return {text[start : start + 5] for start in range(max(len(text) - 4, 1))} if text else set()


def similarity(first: str, second: str) -> float:
    """The reference: the exact Jaccard similarity."""
    one, two = shingles(first), shingles(second)
    return len(one & two) / len(one | two) if one and two else 0.0
