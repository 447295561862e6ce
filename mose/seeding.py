"""All random numbers of the project: each is a function of a seed and the name of what is drawn.

No generator is shared. A draw does not depend on which draws came before it, so that results are the same at any number of
processes, after a resume, and when code elsewhere starts to draw.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

UINT64_ARRAY = NDArray[np.uint64]

# SplitMix64 (Steele, Lea, Flood 2014): hashes a counter to 64 bits that look independent, without any state.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from a seed and the purpose it is used for, e.g. `derive_key(seed, "masking", epoch)`."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(values: UINT64_ARRAY) -> UINT64_ARRAY:
    """SplitMix64's finaliser: a bijection of 64-bit numbers whose results look random. Any shape."""
    z = values.astype(np.uint64, copy=True)
    z ^= z >> np.uint64(30)
    z *= _MULTIPLIER_1
    z ^= z >> np.uint64(27)
    z *= _MULTIPLIER_2
    z ^= z >> np.uint64(31)
    return z


def counter_random(key: int | UINT64_ARRAY, counters: UINT64_ARRAY) -> UINT64_ARRAY:
    """64 random bits per counter under `key`; key and counters broadcast, so a key may be given per row."""
    with np.errstate(over="ignore"):
        keys = mix(np.asarray(key, dtype=np.uint64) + _INCREMENT)
        return mix(keys + (counters.astype(np.uint64) + np.uint64(1)) * _INCREMENT)


def generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator for work that draws sequentially (one shuffle buffer, one augmentation)."""
    return np.random.Generator(np.random.Philox(key=derive_key(*parts)))
