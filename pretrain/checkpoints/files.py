"""The files of a training checkpoint: names, manifest, and verification by size and checksum; needs no engine."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mose.config import fingerprint
from mose.errors import MoseError
from mose.files.atomic_file import file_sha256
from mose.files.json_file import parse_json
from mose.files.records import from_plain
from mose.files.safe_path import relative_path
from mose.run_directory import checkpoint_name
from pretrain.checkpoints.run_state import Progress

MANIFEST_NAME = "manifest.json"
LATEST_NAME = "latest"
PROBE_NAME = "probe.safetensors"
CHANGES_NAME = "changes.jsonl"
DAMAGED_MARK = "damaged-"
ABANDONED_MARK = "abandoned-"
_NAME = re.compile(r"step-[0-9]+")


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's folder name: `step-000100`, or `damaged-step-000100` of one that was set aside."""
    return int(checkpoint.name.rpartition("step-")[2])


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder of this name may be a checkpoint."""
    return bool(_NAME.fullmatch(name))


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, damaged ones included; without temporary ones and those set aside.

    Raises:
        OSError: `folder` cannot be listed. (`Path.glob` would return nothing, and the run would look new.)
    """
    return [path for path in _named_as_checkpoints(folder) if path.is_dir()]


def dangling_checkpoints(folder: Path) -> list[Path]:
    """Links with a checkpoint's name to a folder that is not there: moved, or on a file system that is not mounted."""
    return [path for path in _named_as_checkpoints(folder) if path.is_symlink() and not path.exists()]


def _named_as_checkpoints(folder: Path) -> list[Path]:
    try:
        entries = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((path for path in entries if is_checkpoint_name(path.name)), key=step_of)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `latest` in `folder` names; None where there is no such file, or no such checkpoint."""
    try:
        name = (folder / LATEST_NAME).read_text("utf-8").strip()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None
    return folder / name if is_checkpoint_name(name) and (folder / name).is_dir() else None


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint; of a linked one only the link, since whoever moved the folder away still wants it."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def manifest_fingerprint(manifest: dict[str, Any]) -> str:
    """The fingerprint of everything else in a manifest."""
    return fingerprint({name: value for name, value in manifest.items() if name != "fingerprint"})


def read_checkpoint_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest: `progress`, `identity`, `files` (SHA-256 by name) and `sizes` (bytes by name).

    Raises:
        MoseError: there is none, so the checkpoint is incomplete, or the manifest is damaged.
    """
    path = checkpoint / MANIFEST_NAME
    try:
        manifest = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file; expected a complete checkpoint") from None
    except ValueError as error:
        raise MoseError(f"{path}: not JSON: {error}") from None
    for name in ("progress", "identity", "files", "sizes"):
        if not isinstance(manifest, dict) or not isinstance(manifest.get(name), dict):
            raise MoseError(f"{path}: {name}: missing, expected a table as `mose-pretrain train` writes it")
    try:
        Progress.from_plain(manifest["progress"])
        from_plain(dict[str, str], manifest["files"], "files")
        from_plain(dict[str, int], manifest["sizes"], "sizes")
    except ValueError as error:
        raise MoseError(f"{path}: {error}") from None
    for name in (*manifest["files"], *manifest["sizes"]):
        relative_path(name, f"{path}: files")
    if manifest.get("fingerprint") != manifest_fingerprint(manifest):
        raise MoseError(f"{path}: fingerprint: does not fit what the file says; expected it unedited")
    return manifest  # type: ignore[no-any-return]


def misnamed(checkpoint: Path, manifest: dict[str, Any]) -> str | None:
    """What is wrong where a checkpoint's folder is not called after the step in its manifest; None if it is."""
    step = manifest["progress"]["step"]
    name = checkpoint_name(step)
    if checkpoint.name.removeprefix(DAMAGED_MARK).removeprefix(ABANDONED_MARK) == name:
        return None
    return f"{checkpoint}: {MANIFEST_NAME}: progress.step is {step}, expected the step in the folder's name; rename it to {name}"


def first_fault(checkpoint: Path, manifest: dict[str, Any], names: Iterable[str], checksums: bool = True) -> str | None:
    """The fault of the first bad file among `names`, or None; without `checksums` only sizes are compared."""
    for name in names:
        path, size = checkpoint / name, manifest["sizes"].get(name)
        if not path.is_file():
            return f"{checkpoint}: {name} is missing; expected it as {MANIFEST_NAME} says"
        if path.stat().st_size != size:
            return f"{checkpoint}: {name} has {path.stat().st_size} bytes, expected {size} as in {MANIFEST_NAME}: truncated"
        if checksums and file_sha256(path) != manifest["files"][name]:
            return f"{checkpoint}: {name} differs from its checksum; expected it as {MANIFEST_NAME} says"
    return None


def checkpoint_bytes(checkpoint: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
