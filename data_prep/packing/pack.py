"""Chunks to rows: a pure function of their lengths, files, repositories, a seed and the config.

Letters: F files.
"""

import importlib

from data_prep.packing.config import PackingConfig
from data_prep.packing.rows import ChunkTable, LabelBalance, Packer, Packing
from mose.array_types import INT64_ARRAY
from mose.dataset.packing_modes import PackingMode
from mose.seeding import generator


def pack(table: ChunkTable, seed: int, config: PackingConfig, balance: LabelBalance | None = None) -> Packing:
    """Build rows of the chunks in `table`; equal arguments give equal rows.

    `config` is resolved, and no chunk exceeds its `chunk_limits`. `balance` counts the labels of earlier calls and is updated.
    """
    balance = balance or LabelBalance(config.mixed_share)
    return packer_of(config.mode).pack(table, generator(seed, "packing"), config, balance)


def chunk_limits(num_tokens_F: INT64_ARRAY, config: PackingConfig) -> INT64_ARRAY:
    """The most tokens per chunk of each file [F], by the packer of the config's mode."""
    return packer_of(config.mode).chunk_limits(num_tokens_F, config)


def packer_of(mode: PackingMode) -> Packer:
    """The packer that the registry of modes names."""
    packer: Packer = importlib.import_module(f"data_prep.packing.{mode.packer}").PACKER
    return packer
