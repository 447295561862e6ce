"""Chunks to rows: a pure function of their lengths, files, repositories, a seed and the config.

Letters: F files.
"""

import numpy as np

from data_prep.packing.config import PackingConfig
from data_prep.packing.dense import pack_dense
from data_prep.packing.faithful import pack_faithful
from data_prep.packing.next_sentence import pack_nsp
from data_prep.packing.rows import ChunkTable, LabelBalance, Packing
from mose.array_types import INT64_ARRAY
from mose.seeding import generator

_MODES = {"dense": pack_dense, "faithful": pack_faithful, "nsp": pack_nsp}


def pack(table: ChunkTable, seed: int, config: PackingConfig, balance: LabelBalance | None = None) -> Packing:
    """Build rows of the chunks in `table`; equal arguments give equal rows.

    `config` is resolved, and no chunk exceeds its `chunk_limits`. `balance` counts the labels of earlier calls and is updated.
    """
    balance = balance or LabelBalance(config.mixed_share)
    return _MODES[config.mode](table, generator(seed, "packing"), config, balance)


def chunk_limits(num_tokens_F: INT64_ARRAY, config: PackingConfig) -> INT64_ARRAY:
    """The most tokens per chunk of each file [F]: faithful keeps files whole, nsp needs at least two chunks per file."""
    if config.mode == "faithful":
        return np.maximum(1, num_tokens_F)
    if config.mode == "nsp":
        return np.clip((num_tokens_F + 1) // 2, 1, config.piece_tokens)
    return np.full_like(num_tokens_F, config.piece_tokens)
