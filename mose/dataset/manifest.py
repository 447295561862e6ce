"""`manifest.json`: the contents of a data set, against which readers check every shard."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mose.dataset.packed_sequence import token_dtype
from mose.dataset.packing_modes import PackingMode
from mose.dataset.shard_format import RecordLayout
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.files.json_file import parse_json
from mose.files.records import from_plain
from mose.files.safe_path import path_inside, relative_path

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"
UNFINISHED_NAME = "removal.json"
"""The journal of `mose-data remove`; while it is there, some shards are newer than the manifest."""
SPLITS = ("train", "held_out")
LONGEST_SEQUENCE, LARGEST_VOCABULARY, MOST_ROWS = 1 << 20, 1 << 31, 1 << 48
"""Limits of what a manifest may say, far above what is packed: numbers of rows and offsets are 64-bit integers."""


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a split: its path below the data set, rows, real tokens, bytes, SHA-256; its index of rows and its lineage."""

    path: str
    rows: int
    tokens: int
    num_bytes: int
    sha256: str
    index_path: str
    index_sha256: str
    lineage_path: str
    lineage_sha256: str

    def require_valid(self, where: str) -> None:
        """Check what the types of the fields do not; `where` names the file and the split.

        Raises:
            MoseError: a path leads out of the data set, or a number is negative.
        """
        for name in ("path", "index_path", "lineage_path"):
            # Training reads no lineage: a data set without it has empty ones, which `lineage_in` refuses.
            if name != "lineage_path" or self.lineage_path:
                relative_path(getattr(self, name), f"{where}.{name}")
        for name in ("rows", "tokens", "num_bytes"):
            if (value := getattr(self, name)) < 0:
                raise MoseError(f"{where}.{name}: {value}, expected a whole number from 0")

    def shard_in(self, dataset: Path) -> Path:
        """The tar of this entry; like the two below, refused (MoseError) where a link leads out of the data set."""
        return path_inside(dataset, self.path, f"{dataset}: path of a shard")

    def index_in(self, dataset: Path) -> Path:
        """The index beside the shard."""
        return path_inside(dataset, self.index_path, f"{dataset}: index_path of a shard")

    def lineage_in(self, dataset: Path) -> Path:
        """The lineage table beside the shard."""
        return path_inside(dataset, self.lineage_path, f"{dataset}: lineage_path of a shard")


@dataclass(frozen=True)
class Manifest:
    """A data set; `statistics` holds counts that are not needed to read rows (drop reasons, fill, languages)."""

    tokenizer_fingerprint: str
    config_fingerprint: str
    vocabulary_size: int
    sequence_length: int
    splits: dict[str, tuple[ShardEntry, ...]]
    statistics: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    generations: tuple[str, ...] = ()
    """The content root of each generation, the present one last; `mose-data remove` adds one. Empty in older manifests."""

    @property
    def content_root(self) -> str:
        """Root of a Merkle tree (SHA-256) over the shards: two data sets have equal roots only if all their rows are equal.

        A tree, so that one shard can be shown to belong to a data set by a few hashes. Leaves and inner nodes are hashed with
        different first bytes, as in RFC 6962: otherwise a shard could be made up whose digest is that of an inner node.
        """
        leaves = [json.dumps([split, vars(shard)], sort_keys=True) for split in SPLITS for shard in self._of(split)]
        nodes = [hashlib.sha256(b"\0" + leaf.encode("utf-8")).digest() for leaf in leaves] or [b""]
        while len(nodes) > 1:
            pairs = [nodes[place : place + 2] for place in range(0, len(nodes), 2)]
            nodes = [hashlib.sha256(b"\1" + b"".join(pair)).digest() if len(pair) == 2 else pair[0] for pair in pairs]
        return nodes[0].hex()

    @property
    def content_generations(self) -> tuple[str, ...]:
        """`generations`; of an older manifest, which does not have them, the present content alone."""
        return self.generations or (self.content_root,)

    def _of(self, split: str) -> tuple[ShardEntry, ...]:
        return self.splits.get(split, ())

    def layout(self) -> RecordLayout:
        """The record layout of every shard."""
        return RecordLayout(self.sequence_length, np.dtype(token_dtype(self.vocabulary_size)))

    @property
    def packing_mode(self) -> PackingMode:
        """How the rows were packed, from `statistics`; a manifest that does not say so describes dense rows.

        Raises:
            MoseError: this version knows no such mode.
        """
        mode = self.statistics.get("mode", PackingMode.dense)
        if not isinstance(mode, str) or mode not in PackingMode.__members__:
            raise MoseError(f"{MANIFEST_NAME}: statistics.mode: {mode!r}, expected one of {', '.join(PackingMode)}")
        return PackingMode[mode]

    def shards(self, split: str) -> tuple[ShardEntry, ...]:
        """The shards of a split, in row order.

        Raises:
            MoseError: there is no such split, or it is empty.
        """
        if not self.splits.get(split):
            raise MoseError(f"{MANIFEST_NAME}: split {split!r} has no rows; expected one of {sorted(self.splits)}")
        return self.splits[split]

    def rows(self, split: str) -> int:
        """Rows of a split."""
        return sum(shard.rows for shard in self._of(split))

    def tokens(self, split: str) -> int:
        """Real tokens of a split."""
        return sum(shard.tokens for shard in self._of(split))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder/manifest.json` atomically; it is the last file of a data set to appear.

    If it has generations, the last one becomes the content root of the shards that it lists.
    """
    if manifest.generations:
        manifest = dataclasses.replace(manifest, generations=(*manifest.generations[:-1], manifest.content_root))
    write_json(folder / MANIFEST_NAME, dataclasses.asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        MoseError: it is missing, is not JSON, lacks a field, was written by another schema version, or was edited.
    """
    path = folder / MANIFEST_NAME
    try:
        values = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file; expected a data set that `mose-data pack` has finished") from None
    except (ValueError, OSError) as error:
        raise MoseError(f"{path}: not a readable JSON file: {error}") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise MoseError(f"{path}: schema_version is {version!r}, expected {SCHEMA_VERSION}")
    try:
        manifest = from_plain(Manifest, values)
    except ValueError as error:
        raise MoseError(f"{path}: not a manifest of this version: {error}") from None
    # A size of 0, or of 2^60 slots, would only be met later, as a division by zero or as an allocation that fails.
    for name, largest in (("sequence_length", LONGEST_SEQUENCE), ("vocabulary_size", LARGEST_VOCABULARY)):
        if not 1 <= (value := getattr(manifest, name)) <= largest:
            raise MoseError(f"{path}: {name}: {value}, expected 1 to {largest:,}")
    for split, shards in manifest.splits.items():
        for number, shard in enumerate(shards):
            shard.require_valid(f"{path}: splits.{split}[{number}]")
        if (rows := sum(shard.rows for shard in shards)) > MOST_ROWS:
            raise MoseError(f"{path}: splits.{split}: {rows:,} rows, expected at most {MOST_ROWS:,}")
    if manifest.generations and manifest.generations[-1] != manifest.content_root:
        found = f"{manifest.generations[-1]!r:.20}..., its shards give {manifest.content_root[:16]}..."
        raise MoseError(f"{path}: generations: the last is {found}; expected the file as `mose-data` wrote it")
    return manifest
