"""Which split a repository belongs to: a pure function of its name, so that every command agrees."""

import re

from mose.seeding import derive_key

TRAIN = "train"
HELD_OUT = "held_out"
# Two sources may hold one repository; the second is listed as NAME#2 and must not land in the other split.
_NUMBER = re.compile(r"#\d+$")


def split_of(repository: str, seed: int, held_out_fraction: float) -> str:
    """`held_out` for about `held_out_fraction` of all repository names, else `train`; all files of a repository go together."""
    key = derive_key(seed, "split", _NUMBER.sub("", repository))
    return HELD_OUT if key < held_out_fraction * 2**64 else TRAIN
