"""The lease of a task: one process holds it and renews it with a heartbeat; others take it over when the heartbeat stops.

A lease only saves work. The bytes of a task are the same whoever runs it, and every file appears by a rename from a name of its
own, so two processes that run one task by mistake do no harm.
"""

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

from data_prep.execution.task_files import lease_path, process_start
from data_prep.pipeline.task import TaskProgress
from mose.errors import MoseError
from mose.files.atomic_file import temporary_path, write_json
from mose.files.json_file import parse_json
from mose.files.records import from_plain
from mose.files.storage import is_local

HEARTBEAT_SECONDS = 10.0
# Twelve heartbeats: file systems of clusters stall for tens of seconds, and a take-over by mistake repeats a whole task.
DEAD_AFTER_SECONDS = 120.0
# A take-over fails if another process is faster. More than a few failures in a row mean that many processes start at once.
_ATTEMPTS = 5


class TaskHeldError(MoseError):
    """Another living process works on the task."""


@dataclass(frozen=True)
class LeaseRecord:
    """Content of a lease's file."""

    task: int
    token: str
    """Identifies the lease."""
    host: str
    pid: int
    machine: str
    """Boot and process namespace in which `pid` is valid."""
    process_start: str
    """Start time of the process, because the kernel reuses process numbers."""
    job: str
    """SLURM's job number, or empty."""
    restarts: str
    """How often SLURM has restarted that job."""
    started: float
    heartbeat: float
    """Seconds since 1970, like `started`."""
    expected_repositories: int
    """Repositories of the task; 0 if not known."""
    progress: TaskProgress

    def is_alive(self, now: float) -> bool:
        """Whether its process may still be at work: its heartbeat is recent, and nothing shows that it is gone."""
        if now - self.heartbeat > DEAD_AFTER_SECONDS:
            return False
        job, restarts = _slurm_job()
        # SLURM restarts a job only after all of its processes have ended.
        if job and self.job == job and self.restarts != restarts:
            return False
        return self.machine != _machine() or process_start(self.pid) == self.process_start


def read_lease(dataset: Path, task: int) -> LeaseRecord | None:
    """The lease of a task; None if there is none.

    A damaged file counts as a lease that was renewed when the file was last written: its process may be about to replace it.
    """
    return _read(lease_path(dataset, task), task)


class Lease(contextlib.AbstractContextManager["Lease"]):
    """Holds a task while the block runs; a thread writes the heartbeat.

    On a file system a lease is made by linking a complete file to its name, which only one process can do. Object stores have no
    such operation: there a lease is written and read back, so two processes that start within a second may both hold the task.
    """

    def __init__(self, dataset: Path, task: int, expected_repositories: int = 0):
        now = time.time()
        job, restarts = _slurm_job()
        pid = os.getpid()
        self._path = lease_path(dataset, task)
        self._record = LeaseRecord(
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
            progress=TaskProgress(),
        )
        self._progress = TaskProgress()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._taken_by: LeaseRecord | None = None
        self._restore_signal: Callable[[], object] = lambda: None

    def __enter__(self) -> "Lease":
        """Take the lease.

        Raises:
            TaskHeldError: a living process holds it.
        """
        self._acquire()
        self._restore_signal = _on_terminate(self._terminate)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._restore_signal()
        self._ended.set()
        self._thread.join()
        self._release()

    def observe(self, progress: TaskProgress) -> None:
        """Set the progress that the next heartbeat writes.

        Raises:
            TaskHeldError: another process took the task over because this one wrote no heartbeat.
        """
        self._progress = progress
        if self._taken_by:
            raise TaskHeldError(f"{_described(self._taken_by)}: took it over while this process wrote no heartbeat")

    def _acquire(self) -> None:
        for _ in range(_ATTEMPTS):
            there = self._read()
            if there is not None and there.is_alive(time.time()):
                raise TaskHeldError(f"{_described(there)}: works on it; expected one process per task")
            if there is not None:
                self._put_aside(there)
            if self._create():
                return
        raise TaskHeldError(f"{self._path}: other processes keep taking it; expected one process per task")

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
            # A file system without hard links: others may see an incomplete file for a moment, which counts as alive.
            return _create_exclusively(self._path, temporary.read_bytes())
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _put_aside(self, dead: LeaseRecord) -> None:
        """Remove a dead lease. Renaming it first lets only one of several processes succeed."""
        if not is_local(self._path):
            return
        aside = temporary_path(self._path)
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        # Between the read and the rename another process may have created its lease. Then that was renamed: put it back.
        found = _read(aside, dead.task)
        if found is not None and found.token not in ("", dead.token):
            with contextlib.suppress(OSError):
                os.link(aside, self._path)
        aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            # A heartbeat that cannot be written (a full disk, a stalled server) must not end the task.
            with contextlib.suppress(OSError):
                self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        there = self._read()
        if there is not None and there.token not in ("", self._record.token):
            self._taken_by = there
            self._ended.set()
            return
        self._record = dataclasses.replace(self._record, heartbeat=time.time(), progress=self._progress)
        if not is_local(self._path):
            write_json(self._path, dataclasses.asdict(self._record))
            return
        temporary = self._write_temporary()
        # SIGTERM may have released the lease in the meantime; writing it again would leave it behind.
        if not self._ended.is_set():
            temporary.replace(self._path)
        temporary.unlink(missing_ok=True)

    def _write_temporary(self) -> Path:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(self._path)
        temporary.write_text(json.dumps(dataclasses.asdict(self._record), indent=1) + "\n", "utf-8")
        return temporary

    def _read(self) -> LeaseRecord | None:
        return _read(self._path, self._record.task)

    def _is_mine(self) -> bool:
        there = self._read()
        return there is not None and there.token == self._record.token

    def _release(self) -> None:
        if self._taken_by is None and self._is_mine():
            self._path.unlink(missing_ok=True)

    def _terminate(self) -> None:
        """End the process at once, as a kill would, but release the lease so that nobody waits for its heartbeat."""
        self._ended.set()
        self._release()
        os._exit(128 + signal.SIGTERM)


def _read(path: Path, task: int) -> LeaseRecord | None:
    try:
        return from_plain(LeaseRecord, parse_json(path.read_bytes()))
    except FileNotFoundError:
        return None
    except ValueError:
        with contextlib.suppress(FileNotFoundError):
            written = path.stat().st_mtime
            return LeaseRecord(task, "", "an unknown host", 0, "", "", "", "", written, written, 0, TaskProgress())
        return None


def _described(record: LeaseRecord) -> str:
    since, last = (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) for when in (record.started, record.heartbeat))
    return f"task {record.task}: process {record.pid} of {record.host}, started {since}, last heartbeat {last}"


def _create_exclusively(path: Path, content: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _on_terminate(terminate: Callable[[], None]) -> Callable[[], object]:
    """Call `terminate` at SIGTERM, which schedulers send at the time limit; returns a function that restores the old handler."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    previous = signal.signal(signal.SIGTERM, lambda number, frame: terminate())
    return lambda: signal.signal(signal.SIGTERM, previous)


def _slurm_job() -> tuple[str, str]:
    return os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")


def _machine() -> str:
    """Identifies where process numbers are valid: this boot of this machine, and the process namespace of this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
