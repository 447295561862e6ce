"""Counts how many held-out files also stand in train, from the blob ids in the lineage tables: 8 bytes per held-out file.

Letters: B blobs of held_out.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.filters.blob_set import blob_prefix
from data_prep.shards.lineage import LineageTable
from mose.dataset.manifest import Manifest, ShardEntry
from mose.seeding import UINT64_ARRAY


@dataclass(frozen=True)
class HeldOutCopies:
    """Distinct files of held_out, and those of them whose bytes stand in train, too."""

    held_out: int
    in_train: int


def count_held_out_copies(dataset: Path, manifest: Manifest) -> HeldOutCopies:
    """Compare the blob ids of all shards of both splits.

    Raises:
        MoseError: a lineage table is missing or damaged.
    """
    tables = [_prefixes(dataset, entry) for entry in manifest.splits.get("held_out", ())]
    held_out_B = np.unique(np.concatenate([np.zeros(0, np.uint64), *tables]))
    is_in_train_B = np.zeros(len(held_out_B), np.bool_)
    for entry in manifest.splits.get("train", ()):
        is_in_train_B |= np.isin(held_out_B, _prefixes(dataset, entry))
    return HeldOutCopies(len(held_out_B), int(is_in_train_B.sum()))


def _prefixes(dataset: Path, entry: ShardEntry) -> UINT64_ARRAY:
    with LineageTable(entry.lineage_in(dataset)) as table:
        found = (blob_prefix(blob_id) for blob_id in table.values("blob_id"))
        return np.fromiter((prefix for prefix in found if prefix is not None), np.uint64)
