"""The history of a run's starts: one line when a start begins and one when it ends, in the launch folder of the run."""

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mose.files.atomic_file import named_errors
from mose.files.json_file import parse_json
from mose.files.records import from_plain

FILE_NAME = "starts.jsonl"
# How a start ended.
FINISHED, STOPPED, FAILED, HUNG, LOST = "finished", "stopped", "failed", "hung", "lost"
BAD_INPUT, DIVERGED, CANCELLED, CHECKED = "bad input", "diverged", "cancelled", "failed the preflight"
# The run itself is to blame: what counts towards a crash loop.
OWN_FAILURES = (FAILED, HUNG)


@dataclass(frozen=True)
class Start:
    """One start of a run: from the job's first line to its end. Times are seconds since 1970."""

    job: str
    restarts: int
    """How often SLURM had restarted the job."""
    nodes: tuple[str, ...]
    started: float
    first_step: int
    """Steps done when it began."""
    trained: float = 0.0
    """When its first step was under way; 0 if none was."""
    ended: float = 0.0
    cause: str = ""
    """How it ended; empty while it runs, or if nobody was left to say."""
    code: int = 0
    """Exit code of the ranks."""
    last_step: int = 0
    """Last step that the supervisor saw."""
    saved_step: int = 0
    """Step of the newest checkpoint."""
    suspects: tuple[str, ...] = ()
    """Nodes that a failure or the preflight names."""
    note: str = ""


class History:
    """The starts of a run in `folder`; one process at a time writes."""

    def __init__(self, folder: Path):
        self._path = folder / FILE_NAME

    def append(self, start: Start) -> None:
        """Add a start that begins, or the same one with its end; a line of the same job and restart replaces the one before."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with named_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(start)) + "\n")

    def read(self) -> list[Start]:
        """Every start in order. One that was begun and has no end, but is followed by another, was lost: its node died."""
        if not self._path.exists():
            return []
        found: dict[tuple[str, int], Start] = {}
        # A killed process may leave its last line unfinished.
        for line in self._path.read_text("utf-8").split("\n")[:-1]:
            with contextlib.suppress(ValueError):
                start = from_plain(Start, _plain(line))
                found[start.job, start.restarts] = start
        starts = list(found.values())
        lost = [dataclasses.replace(start, cause=LOST) if not start.cause else start for start in starts[:-1]]
        return lost + starts[-1:]


def _plain(line: str) -> Any:
    return parse_json(line.encode("utf-8"))
