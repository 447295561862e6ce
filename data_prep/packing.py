"""Pieces to rows: a pure function of their lengths, files, repositories, a seed and the config."""

from data_prep.config import PackingConfig
from data_prep.dense_packing import pack_dense
from data_prep.faithful_packing import pack_faithful
from data_prep.nsp_packing import pack_nsp
from data_prep.packed_rows import LabelBalance, Packing, PieceTable
from mose.seeding import generator

_MODES = {"dense": pack_dense, "faithful": pack_faithful, "nsp": pack_nsp}


def pack(table: PieceTable, seed: int, config: PackingConfig, balance: LabelBalance | None = None) -> Packing:
    """Build the rows of a pool; equal arguments give equal rows.

    `config` is resolved, and the pieces are as `piece_limit` allows. `balance` carries the labels of earlier pools and is
    updated.
    """
    balance = balance or LabelBalance(config.mixed_share)
    return _MODES[config.mode](table, generator(seed, "packing"), config, balance)


def piece_limit(num_tokens: int, config: PackingConfig) -> int:
    """How long a piece of a file of `num_tokens` may be: faithful cuts nothing, nsp needs two pieces of every file."""
    limits = {
        "dense": config.piece_tokens,
        "faithful": max(1, num_tokens),
        "nsp": max(1, min(config.piece_tokens, (num_tokens + 1) // 2)),
    }
    return limits[config.mode]
