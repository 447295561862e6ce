"""Whether a run goes forward: from its heartbeat and its metrics, by the clock of the one who looks."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from mose.files.json_file import parse_json
from mose.run_directory import RunDirectory

START_STAGE, DIVERGED_STAGE, STOPPED_STAGE = "start", "diverged", "stopped"


@dataclass(frozen=True)
class Heartbeat:
    """The content of heartbeat.json that matters here."""

    step: int
    stage: str
    unix_seconds: float


def read_heartbeat(run: RunDirectory) -> Heartbeat | None:
    """The newest heartbeat; None where there is none, or it is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = parse_json(run.heartbeat.read_bytes())
        return Heartbeat(int(values.get("step", 0)), str(values.get("stage", "")), float(values.get("unix_seconds", 0)))
    return None


def newest_checkpoint_step(run: RunDirectory) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    with contextlib.suppress(OSError):
        names = [path.name.partition("-")[2] for path in run.checkpoints.glob("step-*")]
        return max((int(name) for name in names if name.isdigit()), default=0)
    return 0


class ProgressWatch:
    """Compares what a run shows at each look; silence is measured by the caller's clock, since nodes' clocks may differ."""

    def __init__(self, run: RunDirectory, hang_seconds: float, start_seconds: float, now: float):
        """0 for a limit watches nothing."""
        self._run, self._hang_seconds, self._start_seconds = run, hang_seconds, start_seconds
        self._seen: tuple[object, ...] = self._look()
        self._changed = now
        self._before = read_heartbeat(run)
        self.step = 0
        """The last step that this start showed; 0 before its first."""
        self.training = False
        """Whether this start's first step is under way."""

    def _look(self) -> tuple[object, ...]:
        """What changes while a run goes forward: step and stage, and the size of the log of runs without a heartbeat."""
        beat, size = read_heartbeat(self._run), 0
        with contextlib.suppress(OSError):
            size = self._run.metrics.stat().st_size
        return (beat.step, beat.stage, size) if beat else (size,)

    @property
    def last_word(self) -> str:
        """The stage of this start's last heartbeat, which says how a run ended: diverged, stopped; empty if it wrote none."""
        beat = read_heartbeat(self._run)
        return beat.stage if beat is not None and beat != self._before else ""

    def silence(self, now: float) -> str:
        """Why the run counts as hung, in words; empty while it goes forward. Call it every second or so."""
        seen = self._look()
        beat = read_heartbeat(self._run)
        if beat is not None and beat != self._before:
            self.step = max(self.step, beat.step)
            self.training = self.training or beat.stage != START_STAGE
        elif beat is None and seen != self._seen:
            self.training = True
        if seen != self._seen:
            self._seen, self._changed = seen, now
        limit = self._hang_seconds if self.training else self._start_seconds
        silent = now - self._changed
        if limit <= 0 or silent < limit:
            return ""
        where = f"in {beat.stage!r} of step {beat.step + 1}" if beat is not None and self.training else "before its first step"
        return f"hung: no progress for {silent:.0f} s {where}"


def file_exists(path: Path) -> bool:
    """Whether a file is there; a file system that fails for a moment counts as no."""
    try:
        return path.exists()
    except OSError:
        return False
