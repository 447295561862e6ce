"""How a run takes its directory: alone, and at step 1 only if the directory is new, or says that it has never saved a checkpoint.

Checkpoints that are not mounted look like checkpoints that were never written. A run that began anew then would empty its own
metrics and train for days before anybody saw it.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mose.errors import MoseError
from mose.run_directory import RunDirectory
from pretrain.checkpoints.files import CHANGES_NAME, LATEST_NAME, is_checkpoint_name, step_of
from pretrain.checkpoints.store import CheckpointStore, ResumePoint
from pretrain.parallel.context import ParallelContext


@contextlib.contextmanager
def sole_writer(run: RunDirectory, store: CheckpointStore) -> Iterator[Callable[[], None]]:
    """Hold the run directory's lock, on rank 0; yields a function that raises where another process took it over.

    Raises:
        MoseError: another process holds it; every rank raises it.
    """
    with contextlib.ExitStack() as held:
        checks: list[Callable[[], None]] = []

        def take() -> None:
            checks.append(held.enter_context(run.hold()).check)

        store.from_main(take)
        yield checks[0] if checks else lambda: None


def say_position(run: RunDirectory, store: CheckpointStore, context: ParallelContext, selection: ResumePoint | None) -> None:
    """Print what is unusual about where the run begins.

    Raises:
        MoseError: it would begin at step 1 in the directory of a run whose checkpoints are gone; every rank raises it.
    """
    sentence = store.from_main(lambda: check_begins(run) if selection is None else missing_newest(run, selection.progress.step))
    if context.is_main and sentence:
        print(sentence, file=sys.stderr, flush=True)


def check_begins(run: RunDirectory) -> str:
    """Check that a run without a usable checkpoint may begin; returns a sentence to print, empty for a new directory.

    Raises:
        MoseError: the directory holds a run whose checkpoints are gone.
        OSError: it cannot be read.
    """
    traces = (run.config, run.metrics, run.heartbeat, run.skipped, run.versions, run.saved, run.path / CHANGES_NAME)
    held = [path.name for path in traces if os.path.lexists(path)]
    state, is_used = _state_of(run.checkpoints)
    recorded, name = run.read_saved()
    if not held and not is_used:
        return ""
    if recorded and name is None and not is_used:
        return f"{run.path}: was stopped before its first checkpoint; it begins again at step 1"
    last = f", the last one saved was {name}" if name else ""
    raise MoseError(
        f"{run.path}: holds a run ({', '.join(held) or run.checkpoints.name}) and no usable checkpoint: {state}{last}; expected "
        "its checkpoints back under their own names, or --resume never with a new directory as output"
    )


def missing_newest(run: RunDirectory, step: int) -> str:
    """A warning where the run has saved a newer checkpoint than that of `step`, from which it resumes, and it is gone."""
    _, name = run.read_saved()
    if name is None or not is_checkpoint_name(name) or step_of(Path(name)) <= step or os.path.lexists(run.checkpoints / name):
        return ""
    return f"warning: {run.checkpoints}: {name} was saved and is missing; the run resumes after step {step}"


def _state_of(checkpoints: Path) -> tuple[str, bool]:
    """The state of a folder without checkpoints in words, and whether it shows that there have been some."""
    if checkpoints.is_symlink() and not checkpoints.exists():
        return f"{checkpoints.name} is a link to {checkpoints.readlink()}, which is not there", True
    if not checkpoints.exists():
        return f"{checkpoints.name} is missing", False
    if not checkpoints.is_dir():
        return f"{checkpoints.name} is not a folder", True
    # A process that was killed inside its first save leaves a hidden folder.
    names = sorted(path.name for path in checkpoints.iterdir() if not path.name.startswith("."))
    others = [name for name in names if name != LATEST_NAME]
    if others:
        return f"{checkpoints.name} holds only {', '.join(others[:3])}", True
    return f"{checkpoints.name} is empty", bool(names)
