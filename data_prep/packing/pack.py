"""Pieces to rows: a pure function of their lengths, files, repositories, a seed and the config.

Letters: F files.
"""

import numpy as np

from data_prep.packing.config import PackingConfig
from data_prep.packing.dense import pack_dense
from data_prep.packing.faithful import pack_faithful
from data_prep.packing.next_sentence import pack_nsp
from data_prep.packing.rows import LabelBalance, Packing, PieceTable
from mose.array_types import INT64_ARRAY
from mose.seeding import generator

_MODES = {"dense": pack_dense, "faithful": pack_faithful, "nsp": pack_nsp}


def pack(table: PieceTable, seed: int, config: PackingConfig, balance: LabelBalance | None = None) -> Packing:
    """Build the rows of a pool; equal arguments give equal rows.

    `config` is resolved, and the pieces are as `piece_limits` allows. `balance` carries the labels of earlier pools and is
    updated.
    """
    balance = balance or LabelBalance(config.mixed_share)
    return _MODES[config.mode](table, generator(seed, "packing"), config, balance)


def piece_limits(num_tokens_F: INT64_ARRAY, config: PackingConfig) -> INT64_ARRAY:
    """How long a piece of a file of so many tokens may be, [F]: faithful cuts nothing, nsp needs two pieces of every file."""
    if config.mode == "faithful":
        return np.maximum(1, num_tokens_F)
    if config.mode == "nsp":
        return np.clip((num_tokens_F + 1) // 2, 1, config.piece_tokens)
    return np.full_like(num_tokens_F, config.piece_tokens)
