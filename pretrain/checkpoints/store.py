"""Writes and resumes a run's checkpoints: temporary name, checksums, rename; `latest` points only at complete ones.

The rename makes a checkpoint appear complete or not at all, so that a run killed at any moment can resume; checksums detect
what a disk or a copy has damaged since.
"""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import distributed as dist

from mose.errors import MoseError, first_line
from mose.files.atomic_file import file_sha256, sync_file, sync_folder, write_json, write_text
from mose.run_directory import checkpoint_name
from pretrain.checkpoints.files import (
    ABANDONED_MARK,
    DAMAGED_MARK,
    LATEST_NAME,
    MANIFEST_NAME,
    PROBE_NAME,
    checkpoint_folders,
    dangling_checkpoints,
    first_fault,
    latest_checkpoint,
    manifest_fingerprint,
    misnamed,
    read_checkpoint_manifest,
    remove_checkpoint,
    step_of,
)
from pretrain.checkpoints.merged_weights import MergedWeights
from pretrain.checkpoints.run_state import Progress
from pretrain.checkpoints.signature import SIGNATURE, is_signed_by_user, sign
from pretrain.config.identity import Change, check_changes, describe_layout, needs_conversion
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.watchdog import is_collective_failure
from pretrain.parallel.zero import STATE_TAG

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

AUTO, NEVER = "auto", "never"
Result = TypeVar("Result")
# In messages of torch's file writer, which does not say why a write failed.
_TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "file write", "iostream")


@dataclass(frozen=True)
class ResumeRequest:
    """The request of the user: the newest complete checkpoint, none, or that of a step; which fields may differ; and whether
    the checkpoint may be unpickled although another user saved it."""

    mode: str = AUTO
    allowed: tuple[str, ...] = ()
    trusted: bool = False

    def __post_init__(self) -> None:
        if self.mode not in (AUTO, NEVER) and not self.mode.isdecimal():
            raise MoseError(f"--resume: {self.mode!r}, expected {AUTO}, {NEVER} or the step of a checkpoint")

    @property
    def step(self) -> int | None:
        """The requested step, if any."""
        return int(self.mode) if self.mode.isdecimal() else None


@dataclass(frozen=True)
class ResumePoint:
    """A whole checkpoint that this run may resume from, and newer ones that it skips because they are damaged."""

    checkpoint: Path
    progress: Progress
    identity: dict[str, Any]
    changes: tuple[Change, ...]
    damaged: tuple[str, ...]
    unpickles: bool = False
    """Whether its states hold classes that weights-only loading refuses, and the user trusts them."""

    @property
    def converts(self) -> bool:
        """Whether its parts must be merged and cut anew for this run's layout."""
        return needs_conversion(self.changes)


@dataclass(frozen=True)
class Saved:
    """A written checkpoint: its size, and how long training paused for it."""

    path: Path
    num_bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.path.name}: {self.num_bytes / 1e6:,.1f} MB written in {self.seconds:.2f} s"


class CheckpointStore:
    """The checkpoints of one run directory."""

    def __init__(self, folder: Path, context: ParallelContext, identity: dict[str, Any]):
        """`folder` is the run's `checkpoints/`; `identity` comes from `config_values`."""
        self._folder = folder
        self._context = context
        self._identity = identity

    def save(self, engine: "Engine", progress: Progress, probe: dict[str, torch.Tensor] | None = None) -> Saved:
        """Write one checkpoint; every rank calls it, and every rank sees it complete when this returns.

        `probe` (rank 0's) holds inputs and states of the live model, against which an export is compared.

        Raises:
            MoseError: it could not be written (disk full, no permission); the previous one is kept, and the next start removes
                the incomplete one.
        """
        began = time.perf_counter()
        final = self._folder / checkpoint_name(progress.step)
        temporary = self._folder / f".{final.name}.partial"
        with self._removed_on_failure(temporary, final):
            if self._context.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            self._barrier()
            written = engine.save(temporary)
            # The probe travels with the weights, so that an export can be compared with the live model after the run has ended.
            if self._context.is_main and probe is not None:
                from safetensors.torch import save

                # Not `save_file`: that gives the file mode 0600, so that a group could read all of a checkpoint but its probe.
                (temporary / PROBE_NAME).write_bytes(save(probe))
                written = [*written, temporary / PROBE_NAME]
            files, sizes = self._described(temporary, written)
            if self._context.is_main:
                self._publish(temporary, final, progress, files, sizes)
        self._barrier()
        return Saved(final, sum(sizes.values()), time.perf_counter() - began)

    @contextlib.contextmanager
    def _removed_on_failure(self, temporary: Path, final: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            # Another rank has ended, and nothing says that this one could not write. The caller finds out which rank it was; the
            # next start removes the folder, into which other ranks may still be writing.
            if any(is_collective_failure(one) for one in _causes(error)):
                raise
            # torch raises RuntimeError where Python raises OSError. Only rank 0 removes the folder: if each rank did, ranks that
            # still write would fail because it is gone, and report that instead of the cause.
            if self._context.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            reason = _first_reason(error)
            free = shutil.disk_usage(self._folder).free / 1e9
            latest = latest_checkpoint(self._folder)
            kept = f"the last whole one is {latest.name}" if latest else "there is none yet"
            raise MoseError(f"{final}: could not be written: {reason} ({free:.2f} GB of disk are free); {kept}") from error

    def _described(self, folder: Path, written: Sequence[Path]) -> tuple[dict[str, str], dict[str, int]]:
        """SHA-256 and size of every file below `folder`, from the ranks that wrote them, each flushed to disk first.

        No rank lists the folder: at 512 ranks that is 512 listings and 250,000 lookups at one moment, and a network file system
        may show a listing from before the last files. Rank 0 looks up each name once, to find a folder that is not shared.
        """
        mine: dict[str, tuple[str, int]] = {}
        for path in written:
            sync_file(path)
            if not (size := path.stat().st_size):
                raise OSError(f"{path.name} is empty after it was written")
            mine[path.relative_to(folder).as_posix()] = file_sha256(path), size
        merged = {name: value for part in self._gather(mine) for name, value in part.items()}
        sizes = {name: size for name, (_, size) in merged.items()}
        if fault := self.from_main(lambda: _missing(folder, sizes, self._context.layout.parts)):
            raise OSError(fault)
        return {name: digest for name, (digest, _) in merged.items()}, sizes

    def _publish(self, temporary: Path, final: Path, progress: Progress, files: dict[str, str], sizes: dict[str, int]) -> None:
        manifest: dict[str, Any] = {"progress": asdict(progress), "identity": self._identity, "files": files, "sizes": sizes}
        try:
            manifest[SIGNATURE] = sign(manifest)
        except (OSError, MoseError) as error:
            self._tell(f"warning: {final.name} is not signed, which only matters where its states must be unpickled: {error}")
        # Written last: a folder with a manifest has all its other files on disk, and the manifest holds their checksums.
        write_json(temporary / MANIFEST_NAME, manifest | {"fingerprint": manifest_fingerprint(manifest)})
        for folder in {path.parent for path in temporary.rglob("*")}:
            sync_folder(folder)
        temporary.rename(final)
        sync_folder(self._folder)
        self._point_at(final)

    def _point_at(self, checkpoint: Path) -> None:
        write_text(self._folder / LATEST_NAME, checkpoint.name + "\n")

    def prune(self, keep_last: int, permanent_every: int) -> None:
        """Delete all but the newest `keep_last` checkpoints, those at multiples of `permanent_every` (0: none), and `latest`.

        What cannot be deleted is left with a warning: an old checkpoint costs disk, a stopped run costs the cluster.
        """
        if not self._context.is_main:
            return
        latest = latest_checkpoint(self._folder)
        for checkpoint in checkpoint_folders(self._folder)[:-keep_last]:
            if checkpoint == latest or (permanent_every and step_of(checkpoint) % permanent_every == 0):
                continue
            try:
                remove_checkpoint(checkpoint)
            except OSError as error:
                self._tell(f"warning: {checkpoint}: could not be removed: {error.strerror or error}; it is left")

    def select(self, request: ResumeRequest) -> ResumePoint | None:
        """The checkpoint to resume from, with every byte checked; None where the run has none yet. Every rank calls it.

        If the newest one is damaged, a warning is printed and the one before is taken, unless the user named the step.

        Raises:
            MoseError: the requested step is missing or damaged, every checkpoint is damaged, one cannot be read or is not called
                after its step, or the checkpoint belongs to another config, data set or layout that cannot be converted to this
                run's.
        """
        names = self._candidates(request)
        damaged: list[str] = []
        for name in names:
            checkpoint = self._folder / name
            manifest, fault = self._checked(checkpoint)
            if fault is None:
                # Whole, so it is no damage that an older one could replace: the user has renamed it, and must say what it is.
                if wrong := misnamed(checkpoint, manifest):
                    raise MoseError(wrong)
                changes = check_changes(checkpoint, manifest["identity"], self._identity, request.allowed)
                for change in changes:
                    if change.is_generation:
                        self._tell(f"resume: {checkpoint.name}: {change}: files were removed from the data set")
                unpickles = self._unpickles(checkpoint, manifest, request.trusted)
                progress = Progress.from_plain(manifest["progress"])
                return ResumePoint(checkpoint, progress, manifest["identity"], changes, tuple(damaged), unpickles)
            if request.step is not None:
                raise MoseError(fault)
            damaged.append(name)
            self._tell(f"warning: {fault}; the checkpoint before is taken")
        if damaged:
            raise MoseError(f"{self._folder}: none of {', '.join(damaged)} is whole; expected one, or a new run directory")
        return None

    def _candidates(self, request: ResumeRequest) -> list[str]:
        # Rank 0's list for all: a shared file system may show a new folder to one rank and not yet to another.
        names: list[str] = self.from_main(self._names)
        if request.step is None:
            return names
        wanted = checkpoint_name(request.step)
        if wanted not in names:
            held = ", ".join(reversed(names)) or "none"
            raise MoseError(f"--resume {request.mode}: {self._folder} holds no {wanted}; it holds {held}")
        return [wanted]

    def _names(self) -> list[str]:
        found = [*checkpoint_folders(self._folder), *dangling_checkpoints(self._folder)]
        return [path.name for path in sorted(found, key=step_of, reverse=True)]

    def _checked(self, checkpoint: Path) -> tuple[dict[str, Any], str | None]:
        """The manifest, and the first fault that any rank found in its share of the files.

        Raises:
            MoseError: a rank cannot read it. That is no damage: permissions or a mount can be mended, and an older checkpoint
                taken instead would throw the newer one's steps away.
        """
        manifest: dict[str, Any] = {}
        fault, unreadable = None, None
        try:
            if checkpoint.is_symlink() and not checkpoint.exists():
                target = checkpoint.readlink()
                unreadable = f"{checkpoint}: is a link to {target}, which is not there; expected it mounted, or no link"
            else:
                manifest = read_checkpoint_manifest(checkpoint)
                fault = first_fault(checkpoint, manifest, self._mine(sorted(manifest["files"])))
        except (MoseError, FileNotFoundError, NotADirectoryError) as error:
            fault = str(error)
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            unreadable = f"{error.filename or checkpoint}: {reason}; expected a readable checkpoint; nothing was changed"
        found = self._gather((fault, unreadable))
        if refusals := [refusal for _, refusal in found if refusal]:
            raise MoseError(refusals[0])
        return manifest, next((one for one, _ in found if one), None)

    def _unpickles(self, checkpoint: Path, manifest: dict[str, Any], trusted: bool) -> bool:
        """Whether the states name classes that weights-only loading refuses; only of a checkpoint that the user trusts.

        Raises:
            MoseError: they do, this user's key did not sign the manifest, and `--trust-checkpoint` was not given.
        """
        from pretrain.parallel.weights_only import first_foreign_class

        signed = self._context.is_main and is_signed_by_user(manifest)
        states = self._mine([name for name in sorted(manifest["files"]) if name.endswith(".pt")])
        fault = first_foreign_class(checkpoint / name for name in states)
        faults, signed = [found for found in self._gather(fault) if found], self._gather(signed)[0]
        if faults and not (trusted or signed):
            raise MoseError(f"{faults[0]}; expected tensors only, a checkpoint that you saved, or --trust-checkpoint")
        if faults:
            reason = "you saved it" if signed else "of --trust-checkpoint"
            self._tell(f"warning: {faults[0]}; it is unpickled because {reason}")
        return bool(faults)

    def load(self, engine: "Engine", selection: ResumePoint) -> Progress:
        """Load a selected checkpoint into an engine; every rank calls it. Newer checkpoints are renamed out of the way.

        A checkpoint of the same layout is loaded as it is, which is fast. For another layout, rank 0 first converts it to
        DeepSpeed's universal format (whole parameters, from which any layout can be cut) in a temporary folder beside it; a
        folder that a killed run left there is replaced.

        Raises:
            MoseError: DeepSpeed failed to convert it.
        """
        if not selection.converts:
            engine.load(selection.checkpoint, selection.unpickles)
        else:
            merged = self._folder / f".merged-{selection.checkpoint.name}"
            began = time.perf_counter()
            was, now = describe_layout(selection.identity), describe_layout(self._identity)
            reason = f"layout changed, {was} -> {now}" if was != now else "its weights have an older order"
            self._tell(f"resume: {selection.checkpoint.name}: {reason}: its parts are merged")
            self.from_main(lambda: _merge(selection, merged))
            engine.load(merged, selection.unpickles)
            self._barrier()
            self.from_main(lambda: shutil.rmtree(merged))
            self._tell(f"resume: merged and read in {time.perf_counter() - began:.1f} s")
        self.from_main(lambda: self._take_over(selection))
        return selection.progress

    def _take_over(self, selection: ResumePoint) -> None:
        """Make the selected checkpoint the newest: rename newer ones, which are damaged or belong to an abandoned course."""
        # Before the renames: a process that is killed between them must not leave `latest` at a name that is gone.
        self._point_at(selection.checkpoint)
        for checkpoint in checkpoint_folders(self._folder):
            if step_of(checkpoint) > selection.progress.step and checkpoint != selection.checkpoint:
                mark = DAMAGED_MARK if checkpoint.name in selection.damaged else ABANDONED_MARK
                aside = checkpoint.with_name(mark + checkpoint.name)
                if aside.is_symlink() or aside.exists():
                    remove_checkpoint(aside)
                checkpoint.rename(aside)
                self._tell(f"resume: {checkpoint.name} is kept as {aside.name}")
        for left_over in (*self._folder.glob(".step-*.partial"), *self._folder.glob(".merged-*")):
            remove_checkpoint(left_over)

    def _mine(self, values: list[Any]) -> list[Any]:
        return values[self._context.rank :: self._context.layout.world_size]

    def _gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        if self._context.layout.world_size == 1:
            return [value]
        values: list[Any] = [None] * self._context.layout.world_size
        dist.all_gather_object(values, value)
        return values

    def _barrier(self) -> None:
        if self._context.layout.world_size > 1:
            self._context.barrier()

    def from_main(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, called on rank 0 while the others wait; its error is raised on every rank."""
        result, fault = None, None
        if self._context.is_main:
            try:
                result = work()
            except (MoseError, OSError) as error:
                fault = str(error)
        result, fault = self._gather((result, fault))[0]
        if fault:
            raise MoseError(fault)
        return cast(Result, result)

    def _tell(self, sentence: str) -> None:
        if self._context.is_main:
            print(sentence, file=sys.stderr, flush=True)


def _missing(folder: Path, sizes: dict[str, int], ranks: int) -> str | None:
    """What is wrong where the ranks' parts are not all in the folder as this process sees it; None if they are."""
    there = [name for name, size in sizes.items() if (folder / name).is_file() and (folder / name).stat().st_size == size]
    parts = sum(name.endswith("_optim_states.pt") for name in there)
    if parts != ranks:
        return f"{parts} of {ranks} ranks' parts are there; expected a folder that all ranks share"
    lost = min(sizes.keys() - set(there), default=None)
    return f"{lost} is not there as it was written; expected a folder that all ranks share" if lost else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised in the handling of, the root cause last."""
    while error is not None:
        yield error
        error = error.__context__


def _first_reason(error: BaseException) -> str:
    """The root cause as one line: torch's clean-up fails as well, and its error hides the first one."""
    *_, root = _causes(error)
    text = first_line(root)
    if isinstance(root, OSError):
        return text
    written = any(word in text for word in _TORCH_WRITER)
    return f"disk full, or a limit on the size of files? torch says: {text}" if written else f"torch says: {text}"


def _merge(selection: ResumePoint, target: Path) -> None:
    from pretrain.parallel.engine import merge_parts

    shutil.rmtree(target, ignore_errors=True)
    if not selection.unpickles:
        # DeepSpeed makes a folder per parameter: indexing refuses names that would lead out of `target`.
        MergedWeights(selection.checkpoint / STATE_TAG)
    merge_parts(selection.checkpoint, target / STATE_TAG, selection.unpickles)


def record_changes(path: Path, selection: ResumePoint) -> None:
    """Append one line of JSON per value that differs from the run that saved."""
    lines = [
        json.dumps({"step": selection.progress.step, "unix_seconds": time.time()} | change.plain())
        for change in selection.changes
    ]
    if lines:
        before = path.read_text("utf-8") if path.is_file() else ""
        write_text(path, before + "".join(f"{line}\n" for line in lines))
