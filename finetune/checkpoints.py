"""Training checkpoints of a fine-tuning run: written whole or not at all, checked before use, resumed exactly.

Every rank holds the same weights and the same optimiser, so the first rank writes for all, and any number of ranks may resume.
All random numbers are functions of the seed and the step: weights, optimiser and step are the whole state.
"""

import contextlib
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from finetune.distributed import World, on_first
from mose.checkpoint.safetensors_file import Entry, SafetensorsReader, SafetensorsWriter
from mose.config import fingerprint
from mose.errors import MoseError
from mose.files.atomic_file import atomic_folder, file_sha256, write_json, write_text
from mose.files.json_file import parse_json
from mose.files.lock import Holder, Lock
from mose.files.records import from_plain
from mose.run_directory import RunDirectory

AUTO, NEVER = "auto", "never"
MANIFEST_NAME, STATE_NAME, LATEST_NAME = "manifest.json", "state.safetensors", "latest"
RANKS = "ranks"
_DAMAGED_MARK = "damaged-"
_NAME = re.compile(r"step-[0-9]{6,18}")
_MODEL, _OPTIMIZER = "model", "optimizer"
State = TypeVar("State")


@dataclass(frozen=True)
class Progress:
    """The position of a run after `step` steps: its best validation so far (step 0: none yet), and what the stage adds."""

    step: int
    best_step: int = 0
    best_score: float = 0.0
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What is saved with the tensors: the position, the values that a resumed run must share, and the tensors' checksum."""

    progress: Progress
    identity: dict[str, Any]
    sha256: str
    num_bytes: int
    fingerprint: str = ""

    def sealed(self) -> dict[str, Any]:
        """As JSON values, with the fingerprint of all others."""
        plain = asdict(self)
        plain.pop("fingerprint")
        return plain | {"fingerprint": fingerprint(plain)}


@dataclass(frozen=True)
class ResumePoint:
    """A whole checkpoint that this run may resume from."""

    folder: Path
    manifest: Manifest

    def stage_state(self, kind: type[State]) -> State:
        """What the stage added to the position, as a `kind`.

        Raises:
            MoseError: it is not one.
        """
        try:
            return from_plain(kind, self.manifest.progress.state, "progress.state")
        except ValueError as error:
            raise MoseError(f"{self.folder}: {error}") from None


@dataclass(frozen=True)
class TrainingState:
    """The tensors of a run: parameters by name, and the optimiser of all of them."""

    parameters: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor to save, by name: `model/NAME`, and `optimizer/KEY/NAME` of each parameter that had a gradient so far."""
        found = {f"{_MODEL}/{name}": parameter for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                found[f"{_OPTIMIZER}/{key}/{name}"] = value
        return found

    @torch.no_grad()
    def fill(self, reader: SafetensorsReader) -> None:
        """Take over the tensors of a file.

        Raises:
            MoseError: the file lacks a parameter, holds one that the model has not, or one of another shape.
        """
        for name, parameter in self.parameters.items():
            _expect(reader, f"{_MODEL}/{name}", tuple(parameter.shape))
            parameter.copy_(reader.read(f"{_MODEL}/{name}"))
        for stored in reader.entries:
            kind, key, name = _parts(stored)
            if name not in self.parameters:
                raise MoseError(f"{reader.path}: tensor {stored} is not expected")
            if kind == _OPTIMIZER:
                parameter = self.parameters[name]
                value = reader.read(stored)
                # The count of steps stays on the CPU, where AdamW keeps it.
                self.optimizer.state[parameter][key] = value.to(parameter.device) if value.ndim else value


def _parts(stored: str) -> tuple[str, str, str]:
    kind, _, rest = stored.partition("/")
    key, _, name = rest.partition("/") if kind == _OPTIMIZER else ("", "", rest)
    return kind, key, name


def _expect(reader: SafetensorsReader, name: str, shape: tuple[int, ...]) -> None:
    found = reader.entries.get(name)
    if found is None or found.shape != shape:
        what = "is missing" if found is None else f"is {list(found.shape)}"
        raise MoseError(f"{reader.path}: tensor {name} {what}, expected {list(shape)}")


@dataclass(frozen=True)
class TrainingCheckpoints:
    """The checkpoints of one run directory. Every rank calls its methods, and a fault of the first rank is raised on all."""

    run: RunDirectory
    world: World
    identity: dict[str, Any]
    """Values that decide the numbers of the run, by name; a checkpoint with others is refused."""

    def select(self, resume: str) -> ResumePoint | None:
        """The newest whole checkpoint, every byte checked; None where the run begins at its first step.

        Raises:
            MoseError: `resume` is `never` and the directory holds a run; the run's checkpoints are gone or all damaged; or the
                newest belongs to another run (the line names the value).
        """
        return on_first(self.world, lambda: self._select(resume))

    def _select(self, resume: str) -> ResumePoint | None:
        if resume == NEVER:
            self.run.create()
            return None
        damaged = []
        for folder in reversed(list(_checkpoints(self.run.checkpoints))):
            try:
                manifest = _checked(folder)
            except MoseError as error:
                damaged.append(folder)
                _say(f"warning: {error}; the checkpoint before is taken")
                continue
            self._require_same_run(folder, manifest)
            for newer in damaged:
                aside = newer.with_name(_DAMAGED_MARK + newer.name)
                shutil.rmtree(aside, ignore_errors=True)
                newer.rename(aside)
            _say(f"resume: after step {manifest.progress.step} of {folder}")
            return ResumePoint(folder, manifest)
        if damaged:
            names = ", ".join(folder.name for folder in damaged)
            raise MoseError(f"{self.run.checkpoints}: none of {names} is whole; expected one, or a new directory as output")
        self._require_fresh()
        return None

    def _require_same_run(self, folder: Path, manifest: Manifest) -> None:
        for name in sorted(manifest.identity.keys() | self.identity.keys()):
            saved, now = manifest.identity.get(name), self.identity.get(name)
            if saved == now:
                continue
            if name != RANKS:
                raise MoseError(f"{folder}: {name}: saved with {saved!r}, now {now!r}; expected the same, or a new output")
            _say(f"resume: saved by {saved} ranks, now {now}: the run continues equal up to rounding")

    def _require_fresh(self) -> None:
        """Check that a run without a checkpoint never had one: checkpoints that are not mounted look the same."""
        recorded, name = self.run.read_saved()
        if recorded and name is None:
            _say(f"{self.run.path}: was stopped before its first checkpoint; it begins again at step 1")
        elif recorded:
            raise MoseError(f"{self.run.checkpoints}: {name} was saved and is missing; expected it back, or a new output")
        else:
            self.run.create()

    def load(self, point: ResumePoint | Path, state: TrainingState) -> None:
        """Fill `state` from a selected checkpoint.

        Raises:
            MoseError: a tensor is missing, not expected or of another shape.
        """
        folder = point if isinstance(point, Path) else point.folder
        with SafetensorsReader(folder / STATE_NAME) as reader:
            state.fill(reader)

    def save(self, progress: Progress, state: TrainingState, keep_last: int) -> None:
        """Write a checkpoint, then delete all but the newest `keep_last` and that of the best validation.

        Raises:
            MoseError: it could not be written; the checkpoints before it are kept.
        """
        on_first(self.world, lambda: self._save(progress, state, keep_last))

    def _save(self, progress: Progress, state: TrainingState, keep_last: int) -> None:
        final = self.run.checkpoint(progress.step)
        try:
            with atomic_folder(final) as temporary:
                path = temporary / STATE_NAME
                _write_tensors(path, state.tensors())
                # The manifest is written last: a folder that has one has its tensors on disk.
                manifest = Manifest(progress, self.identity, file_sha256(path), path.stat().st_size)
                write_json(temporary / MANIFEST_NAME, manifest.sealed())
            write_text(self.run.checkpoints / LATEST_NAME, final.name + "\n")
            self.run.write_saved(final.name)
        except OSError as error:
            kept = [folder.name for folder in _checkpoints(self.run.checkpoints)]
            newest = f"the last whole one is {kept[-1]}" if kept else "there is none yet"
            raise MoseError(f"{final}: could not be written: {error.strerror or error}; {newest}") from None
        kept_steps = {progress.step, progress.best_step}
        for folder in list(_checkpoints(self.run.checkpoints))[:-keep_last]:
            if _step_of(folder) not in kept_steps:
                shutil.rmtree(folder, ignore_errors=True)

    def begin(self) -> None:
        """Record that the run has no checkpoint yet, and remove what killed processes left of theirs."""
        on_first(self.world, self._begin)

    def _begin(self) -> None:
        for left_over in self.run.checkpoints.glob(".step-*.partial"):
            shutil.rmtree(left_over, ignore_errors=True)
        if not self.run.saved.exists():
            self.run.write_saved(None)


def hold_output(run: RunDirectory, world: World, held: contextlib.ExitStack) -> Lock[Holder] | None:
    """Let the first rank hold the run directory until `held` ends; None on the others, which raise its fault too."""
    locks: list[Lock[Holder]] = []
    on_first(world, lambda: locks.append(held.enter_context(run.hold())))
    return locks[0] if locks else None


def due(step: int, every: int, last: int) -> bool:
    """Whether an action with interval `every` (0: only after the last step) is due after `step` steps."""
    return step == last or (every > 0 and step % every == 0)


def _checkpoints(folder: Path) -> Iterator[Path]:
    """Folders with a checkpoint's name, oldest first."""
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    yield from sorted(found, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _checked(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose bytes are all as it says.

    Raises:
        MoseError: the manifest or the tensors are missing or damaged.
    """
    path, tensors = folder / MANIFEST_NAME, folder / STATE_NAME
    try:
        manifest = from_plain(Manifest, parse_json(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise MoseError(f"{path}: {getattr(error, 'strerror', None) or error}; expected a whole checkpoint") from None
    if manifest.sealed()["fingerprint"] != manifest.fingerprint or manifest.progress.step != _step_of(folder):
        raise MoseError(f"{path}: does not fit its fingerprint and folder; expected it unedited")
    if not tensors.is_file() or tensors.stat().st_size != manifest.num_bytes or file_sha256(tensors) != manifest.sha256:
        raise MoseError(f"{tensors}: is missing or differs from its checksum; expected it as {MANIFEST_NAME} says")
    return manifest


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with path.open("wb") as file:
        writer = SafetensorsWriter(file, [Entry(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()])
        for name, value in tensors.items():
            writer.write(name, value)
        writer.close()


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
