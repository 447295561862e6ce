"""How the rows of a data set were packed, and what follows from it for who builds, verifies and trains on them."""

import enum
from typing import Final

# Tasks on whole rows, which the label `mixed` of a row teaches.
ICC: Final = "icc"
NSP: Final = "nsp"


class PackingMode(enum.StrEnum):
    """The registry of packing modes; a mode is the string that configs (`packing.mode`) and manifests (`statistics`) hold.

    The module of the packer stands here as text because no module of `mose` may import `data_prep`.
    """

    task: str
    """Task on whole rows: `icc`, does the row mix two repositories; `nsp`, are its two segments of two repositories."""
    packer: str
    """Module of `data_prep.packing` whose `PACKER` builds the rows."""
    alternates: bool
    """Whether each snippet of a mixed row is of the other repository than the snippet before it."""

    # jsonargparse offers the names of members as choices, so each name is also the value.
    dense = "dense", ICC, "dense", True
    faithful = "faithful", ICC, "faithful", False
    nsp = "nsp", NSP, "next_sentence", True

    def __new__(cls, value: str, task: str, packer: str, alternates: bool) -> "PackingMode":
        mode = str.__new__(cls, value)
        mode._value_ = value
        mode.task, mode.packer, mode.alternates = task, packer, alternates
        return mode
