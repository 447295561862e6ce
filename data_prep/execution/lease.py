"""Who works on a task: a claim that one process holds, with a heartbeat, and that others take over when it is dead."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.execution.task_files import claim_path, process_start
from data_prep.pipeline.task import TaskProgress
from mose.errors import MoseError
from mose.files.atomic_file import temporary_path, write_json
from mose.files.storage import is_local

HEARTBEAT_SECONDS = 10.0
# A dozen heartbeats: file systems of clusters stall for tens of seconds.
DEAD_AFTER_SECONDS = 120.0
_NO_PROGRESS = TaskProgress(0, 0, 0, 0)
# Takers of one dead claim meet at most this often before the last of them gives up.
_ATTEMPTS = 5


class TaskTakenError(MoseError):
    """Another living process works on the task."""


@dataclass(frozen=True)
class ClaimRecord:
    """What a claim's file says."""

    task: int
    token: str
    """Tells this claim from any other."""
    host: str
    pid: int
    machine: str
    """Boot and process namespace, so that a pid is looked for only where it means something."""
    process_start: str
    job: str
    """SLURM's job number, or empty."""
    restarts: str
    """How often SLURM has started that job again."""
    started: float
    heartbeat: float
    """Seconds since 1970, like `started`."""
    expected_repositories: int
    """Repositories of the task; 0 where that is not known."""
    progress: TaskProgress

    def is_alive(self, now: float) -> bool:
        """Whether its process may still be at work: a sign of life not long ago, and not known to be gone."""
        if now - self.heartbeat > DEAD_AFTER_SECONDS:
            return False
        job, restarts = _slurm_job()
        if job and self.job == job and self.restarts != restarts:
            return False
        return self.machine != _machine() or process_start(self.pid) == self.process_start


def read_claim(dataset: Path, task: int) -> ClaimRecord | None:
    """The claim of a task, None if there is none; an unreadable one counts as made when its file was last written."""
    path = claim_path(dataset, task)
    try:
        values = json.loads(path.read_text("utf-8"))
        return ClaimRecord(**{**values, "progress": TaskProgress(**values["progress"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        return _unreadable(path, task)


def _unreadable(path: Path, task: int) -> ClaimRecord | None:
    try:
        written = path.stat().st_mtime
    except FileNotFoundError:
        return None
    return ClaimRecord(task, "", "an unknown host", 0, "", "", "", "", written, written, 0, _NO_PROGRESS)


class Claim(contextlib.AbstractContextManager["Claim"]):
    """Holds a task while the block runs; a thread writes the heartbeat.

    On a file system the claim is made by linking a complete file to its name, which one process only can do. Object stores have
    no such operation: there the claim is written and read again, so two processes that start within a second may both hold
    the task. That costs time, nothing else: both write the same bytes, under temporary names of their own.
    """

    def __init__(self, dataset: Path, task: int, expected_repositories: int = 0):
        now = time.time()
        job, restarts = _slurm_job()
        pid = os.getpid()
        self._dataset, self._path = dataset, claim_path(dataset, task)
        self._record = ClaimRecord(
            task=task,
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=pid,
            machine=_machine(),
            process_start=process_start(pid) or "unknown",
            job=job,
            restarts=restarts,
            started=now,
            heartbeat=now,
            expected_repositories=expected_repositories,
            progress=_NO_PROGRESS,
        )
        self._progress = _NO_PROGRESS
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._taken_by: ClaimRecord | None = None
        self._restore_signal: Callable[[], object] = lambda: None

    def __enter__(self) -> "Claim":
        """Take the task.

        Raises:
            TaskTakenError: a living process holds it.
        """
        self._take()
        self._restore_signal = _on_terminate(self._leave)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._restore_signal()
        self._ended.set()
        self._thread.join()
        self._remove()

    def observe(self, progress: TaskProgress) -> None:
        """Note how far the task is; the next heartbeat says it.

        Raises:
            TaskTakenError: another process took the task over while this one gave no sign of life.
        """
        self._progress = progress
        if self._taken_by:
            raise TaskTakenError(f"{_told(self._taken_by)}: took it over while this process gave no sign of life")

    def _take(self) -> None:
        for _ in range(_ATTEMPTS):
            there = read_claim(self._dataset, self._record.task)
            if there is not None and there.is_alive(time.time()):
                raise TaskTakenError(f"{_told(there)}: works on it; expected one process a task")
            if there is not None:
                self._put_aside(there)
            if self._create():
                return
        raise TaskTakenError(f"{self._path}: other processes keep taking it; expected one process a task")

    def _create(self) -> bool:
        if not is_local(self._path):
            write_json(self._path, dataclasses.asdict(self._record))
            return self._is_mine()
        temporary = self._write_temporary()
        try:
            os.link(temporary, self._path)
        except FileExistsError:
            return False
        except OSError:
            # No hard links here; what follows shows an incomplete file for a moment, and that counts as alive.
            return _create_exclusively(self._path, temporary.read_bytes())
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _put_aside(self, dead: ClaimRecord) -> None:
        if not is_local(self._path):
            return
        aside = temporary_path(self._path)
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        # Between reading and renaming another taker may have put its living claim there: it gets it back.
        found = _token(aside)
        if found not in ("", dead.token):
            with contextlib.suppress(OSError):
                os.link(aside, self._path)
        aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            # A heartbeat that cannot be written (a full disk, a stalled server) is not worth the task.
            with contextlib.suppress(OSError):
                self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        there = read_claim(self._dataset, self._record.task)
        if there is not None and there.token not in ("", self._record.token):
            self._taken_by = there
            self._ended.set()
            return
        self._record = dataclasses.replace(self._record, heartbeat=time.time(), progress=self._progress)
        if not is_local(self._path):
            write_json(self._path, dataclasses.asdict(self._record))
            return
        temporary = self._write_temporary()
        if not self._ended.is_set():
            temporary.replace(self._path)
        temporary.unlink(missing_ok=True)

    def _write_temporary(self) -> Path:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(self._path)
        temporary.write_text(json.dumps(dataclasses.asdict(self._record), indent=1) + "\n", "utf-8")
        return temporary

    def _is_mine(self) -> bool:
        return _token(self._path) == self._record.token

    def _remove(self) -> None:
        if self._taken_by is None and self._is_mine():
            self._path.unlink(missing_ok=True)

    def _leave(self) -> None:
        """End the process at once, as a kill would, but without a claim that others must wait for."""
        self._ended.set()
        self._remove()
        os._exit(128 + signal.SIGTERM)


def _told(record: ClaimRecord) -> str:
    since, last = (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) for when in (record.started, record.heartbeat))
    return f"task {record.task}: process {record.pid} of {record.host}, begun {since}, last sign of life {last}"


def _token(path: Path) -> str:
    try:
        return str(json.loads(path.read_text("utf-8"))["token"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _create_exclusively(path: Path, content: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _on_terminate(leave: Callable[[], None]) -> Callable[[], object]:
    """Call `leave` at SIGTERM, the scheduler's word for the time limit; returns what puts the old handler back."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    previous = signal.signal(signal.SIGTERM, lambda number, frame: leave())
    return lambda: signal.signal(signal.SIGTERM, previous)


def _slurm_job() -> tuple[str, str]:
    return os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")


def _machine() -> str:
    """What a process number belongs to: this boot of this machine, and the process namespace of this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
