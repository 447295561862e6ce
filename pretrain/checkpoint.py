"""Training checkpoints: written under a temporary name, checksummed, renamed; `latest` points only at complete ones."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from mose.atomic_file import file_sha256, sync_file, sync_folder, write_json, write_text
from mose.config import fingerprint, to_plain
from mose.errors import MoseError
from mose.run_directory import checkpoint_name
from pretrain.config import PretrainConfig
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.engine import Engine

MANIFEST_NAME = "manifest.json"
LATEST_NAME = "latest"
# What may differ between the run that saved and the run that resumes without changing a number. The data set counts by its
# fingerprint, not by where it lies.
FREE_FIELDS = ("output", "max_steps", "intervals", "parallel.collective_timeout_seconds", "data.dataset")


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the whole state that is not in the engine."""

    step: int
    consumed_rows: int
    consumed_tokens: int


def config_values(config: PretrainConfig, data_fingerprint: str, world_size: int) -> dict[str, Any]:
    """Every value that decides the numbers of a run, by dotted name: the identity a checkpoint carries."""
    flat = _flatten(to_plain(config))
    kept = {name: value for name, value in flat.items() if not any(f"{name}.".startswith(f"{free}.") for free in FREE_FIELDS)}
    return kept | {"data set": data_fingerprint, "world size": world_size}


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


class CheckpointStore:
    """The checkpoints of one run directory."""

    def __init__(self, folder: Path, context: ParallelContext, identity: dict[str, Any]):
        """`folder` is the run's `checkpoints/`; `identity` comes from `config_values`."""
        self._folder = folder
        self._context = context
        self._identity = identity

    def save(self, engine: Engine, progress: Progress, probe: dict[str, torch.Tensor] | None = None) -> Path:
        """Write one checkpoint; every rank calls it, and it is complete on every rank's disk view when this returns.

        `probe` (rank 0's) holds inputs and states of the live model, against which an export is compared.
        """
        final = self._folder / checkpoint_name(progress.step)
        temporary = self._folder / f".{final.name}.partial"
        if self._context.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self._context.barrier()
        engine.save(temporary)
        if self._context.is_main and probe is not None:
            from safetensors.torch import save_file

            save_file(probe, temporary / "probe.safetensors")
        self._context.barrier()
        files = self._checksums(temporary)
        if self._context.is_main:
            self._publish(temporary, final, progress, files)
        self._context.barrier()
        return final

    def _checksums(self, folder: Path) -> dict[str, str]:
        """SHA-256 of every file below `folder`, which is flushed to disk first; the ranks share the work."""
        mine: dict[str, str] = {}
        for path in self._my_files(sorted(path for path in folder.rglob("*") if path.is_file())):
            sync_file(path)
            mine[path.relative_to(folder).as_posix()] = file_sha256(path)
        parts: list[dict[str, str] | None] = [None] * self._context.layout.world_size
        dist.all_gather_object(parts, mine)
        return {name: digest for part in parts for name, digest in (part or {}).items()}

    def _my_files(self, paths: list[Path]) -> list[Path]:
        return paths[self._context.rank :: self._context.layout.world_size]

    def _publish(self, temporary: Path, final: Path, progress: Progress, files: dict[str, str]) -> None:
        manifest = {"progress": asdict(progress), "identity": self._identity, "files": files, "fingerprint": fingerprint(files)}
        write_json(temporary / MANIFEST_NAME, manifest)
        for folder in {path.parent for path in temporary.rglob("*")}:
            sync_folder(folder)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_folder(self._folder)
        write_text(self._folder / LATEST_NAME, final.name + "\n")

    def prune(self, keep_last: int, permanent_every: int) -> None:
        """Remove all but the newest `keep_last` checkpoints and those at multiples of `permanent_every` (0: none)."""
        if not self._context.is_main:
            return
        steps = sorted(step_of(path) for path in self._folder.glob("step-*"))
        for step in steps[:-keep_last]:
            if not (permanent_every and step % permanent_every == 0):
                shutil.rmtree(self._folder / checkpoint_name(step))

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        return latest_checkpoint(self._folder)

    def load(self, engine: Engine, checkpoint: Path) -> Progress:
        """Check a checkpoint's identity and checksums, then read it; every rank calls it.

        Raises:
            MoseError: it was made by another config, data set or layout, or a file of it is missing or changed.
        """
        manifest = read_checkpoint_manifest(checkpoint)
        self._check_identity(checkpoint, manifest["identity"])
        broken = [name for name in sorted(manifest["files"]) if not (checkpoint / name).is_file()]
        for path in self._my_files([checkpoint / name for name in sorted(manifest["files"])]):
            name = path.relative_to(checkpoint).as_posix()
            if name not in broken and file_sha256(path) != manifest["files"][name]:
                broken.append(name)
        parts: list[list[str] | None] = [None] * self._context.layout.world_size
        dist.all_gather_object(parts, broken)
        found = sorted({name for part in parts for name in part or []})
        if found:
            raise MoseError(
                f"{checkpoint}: {found[0]} is missing or differs from its checksum; expected it as {MANIFEST_NAME} says"
            )
        engine.load(checkpoint)
        return Progress(**manifest["progress"])

    def _check_identity(self, checkpoint: Path, saved: dict[str, Any]) -> None:
        for name in sorted(saved.keys() | self._identity.keys()):
            if saved.get(name) != self._identity.get(name):
                was, now = saved.get(name), self._identity.get(name)
                raise MoseError(
                    f"{checkpoint}: made with {name} = {was}, this run has {now}; a run resumes with the config it began with"
                )


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's folder name."""
    return int(checkpoint.name.removeprefix("step-"))


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `latest` in `folder` names, or None where there is none yet."""
    pointer = folder / LATEST_NAME
    return folder / pointer.read_text("utf-8").strip() if pointer.is_file() else None


def read_checkpoint_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest.

    Raises:
        MoseError: there is none: the folder is no complete checkpoint.
    """
    path = checkpoint / MANIFEST_NAME
    try:
        return json.loads(path.read_text("utf-8"))  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file; expected a complete checkpoint") from None
    except ValueError as error:
        raise MoseError(f"{path}: not JSON: {error}") from None
