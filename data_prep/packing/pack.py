"""Pieces to rows: a pure function of their lengths, files, repositories, a seed and the config.

Letters: F files.
"""

import importlib

from data_prep.packing.config import PackingConfig
from data_prep.packing.rows import LabelBalance, Packer, Packing, PieceTable
from mose.array_types import INT64_ARRAY
from mose.dataset.packing_modes import PackingMode
from mose.seeding import generator


def pack(table: PieceTable, seed: int, config: PackingConfig, balance: LabelBalance | None = None) -> Packing:
    """Build the rows of a pool; equal arguments give equal rows.

    `config` is resolved, and the pieces are as `piece_limits` allows. `balance` carries the labels of earlier pools and is
    updated.
    """
    balance = balance or LabelBalance(config.mixed_share)
    return packer_of(config.mode).pack(table, generator(seed, "packing"), config, balance)


def piece_limits(num_tokens_F: INT64_ARRAY, config: PackingConfig) -> INT64_ARRAY:
    """How long a piece of a file of so many tokens may be, [F]."""
    return packer_of(config.mode).piece_limits(num_tokens_F, config)


def packer_of(mode: PackingMode) -> Packer:
    """The packer that the registry of modes names."""
    packer: Packer = importlib.import_module(f"data_prep.packing.{mode.packer}").PACKER
    return packer
