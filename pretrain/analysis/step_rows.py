"""The rows of a step of a run: computed from seed and position, hence for any step, a future one included.

Letters: G rows of the global batch.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mose.array_types import INT64_ARRAY
from mose.config import require
from mose.dataset.manifest import Manifest
from mose.errors import MoseError
from mose.files.json_file import parse_json
from mose.files.records import from_plain
from mose.run_directory import RunDirectory
from pretrain.checkpoints.files import CHANGES_NAME
from pretrain.config.frozen import load_frozen_config
from pretrain.data.mixture import Mixture
from pretrain.storage.run_data import DatasetSource, sources_of

# If one of these was changed in the middle of a run, the present config gives wrong rows for earlier steps.
_ORDER_FIELDS = ("seed", "batch.global_rows", "data.block_rows", "data.window_rows", "data.fingerprint", "data.split")


@dataclass(frozen=True)
class SourceRows:
    """The rows that a step takes from one data set, in the order of the run, with the epoch of each."""

    source: DatasetSource
    split: str
    rows_G: INT64_ARRAY
    epochs_G: INT64_ARRAY


def rows_of_step(run_folder: Path, step: int) -> tuple[SourceRows, ...]:
    """The rows of step number `step` (counted from 1, as in metrics and skipped.jsonl), by source.

    Raises:
        MoseError: `run_folder` is no run directory, its config was edited, there is no such step, its data set is missing, or the
            run's order of rows was changed during the run.
    """
    run = RunDirectory(run_folder)
    config = load_frozen_config(run)
    require(1 <= step <= config.max_steps, f"--step: {step}, expected 1 to {config.max_steps}, the steps of {run_folder}")
    _check_order_is_one(run.path / CHANGES_NAME)
    data, sources = config.data, sources_of(config.data)
    sizes = tuple(source.manifest.rows(data.split) for source in sources)
    mixture = Mixture(tuple(source.name for source in sources), sizes, tuple(source.weight for source in sources))
    rows = config.batch.global_rows
    numbers_G, epochs_G = mixture.rows_of_run(config.seed, (step - 1) * rows, rows, data.block_rows, data.window_rows)
    firsts = mixture.first_rows
    of_G = np.searchsorted(firsts, numbers_G, side="right") - 1
    return tuple(
        SourceRows(source, data.split, numbers_G[of_G == place] - firsts[place], epochs_G[of_G == place])
        for place, source in enumerate(sources)
    )


def _check_order_is_one(changes: Path) -> None:
    lines = changes.read_text("utf-8").splitlines() if changes.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            change = from_plain(dict[str, Any], parse_json(line.encode("utf-8")))
        except ValueError as error:
            raise MoseError(f"{changes}: line {number}: not a change of the run: {error}") from None
        name = str(change.get("field"))
        if name in _ORDER_FIELDS or name.startswith("data.mixture"):
            was, step, now = (change.get(field) for field in ("was", "step", "now"))
            change_line = f"{changes}: {name} was {was} until step {step} and is {now} since"
            raise MoseError(f"{change_line}; expected a run whose order of rows was never changed")


def row_list(part: SourceRows, step: int) -> list[str]:
    """Lines for `mose-data lineage DATASET --rows FILE`: one row number each, with the row's place as a comment."""
    dataset = shlex.quote(str(part.source.dataset))
    head = f"# step {step}: {len(part.rows_G)} rows of {part.source.dataset}, split {part.split}, in the order of the run"
    command = f"# mose-data lineage {dataset} --split {part.split} --rows THIS_FILE"
    shards = _shards(part.source.manifest, part.split, part.rows_G)
    places = zip(part.rows_G.tolist(), part.epochs_G.tolist(), shards, strict=True)
    return [head, command, *(f"{row}\t# {path} row {inside}, epoch {epoch}" for row, epoch, (path, inside) in places)]


def _shards(manifest: Manifest, split: str, rows_G: INT64_ARRAY) -> list[tuple[str, int]]:
    """The shard's path and the place in the shard of each row."""
    shards = manifest.shards(split)
    firsts = np.cumsum([0, *(shard.rows for shard in shards)])
    numbers = np.searchsorted(firsts, rows_G, side="right") - 1
    return [(shards[number].path, int(row - firsts[number])) for row, number in zip(rows_G, numbers, strict=True)]


def source_named(parts: tuple[SourceRows, ...], name: str) -> SourceRows:
    """The source of this name, or the only one.

    Raises:
        MoseError: there are several and none was named, or none has this name.
    """
    held = ", ".join(f"{part.source.name} ({len(part.rows_G)} rows)" for part in parts)
    if not name and len(parts) == 1:
        return parts[0]
    found = [part for part in parts if part.source.name == name]
    require(bool(found), f"--source: {name or 'not given'}, expected one of this run's: {held}")
    return found[0]
