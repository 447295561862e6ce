"""A lock file with a heartbeat: one process writes into a folder, on file systems that many machines share.

A kernel lock (flock, fcntl) would be released by a kill, but network file systems do not pass it on reliably, and it cannot name
its holder. So a lock is a file that only one process can create. It says who holds it, and a thread rewrites it every
`HEARTBEAT_SECONDS`. Another process takes it over only where the holder is shown to be dead: see `Holder.is_alive`.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from mose.errors import MoseError
from mose.files.atomic_file import named_errors, temporary_path, write_json
from mose.files.json_file import parse_json
from mose.files.records import from_plain
from mose.files.storage import is_local

WRITER_LOCK = "writer.lock"
"""Name of the lock in a folder that one process writes."""
HEARTBEAT_SECONDS = 10.0
# Twelve heartbeats: file systems of clusters stall for tens of seconds, and network ones show an old file for up to a minute.
DEAD_AFTER_SECONDS = 120.0
# Taking a lock fails if another process is faster. More than a few failures in a row mean that many processes start at once.
_ATTEMPTS = 5


class HeldError(MoseError):
    """Another living process holds the lock."""


@dataclass(frozen=True)
class Holder:
    """Content of a lock file: the process that holds it."""

    token: str
    """Identifies the lock; empty where the file could not be parsed."""
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

    @classmethod
    def of_this_process(cls, **more: Any) -> Self:
        """A new lock's content; `more` are the fields that a subclass adds."""
        now = time.time()
        job, restarts = _slurm_job()
        pid = os.getpid()
        start = process_start(pid) or "unknown"
        return cls(uuid.uuid4().hex, socket.gethostname(), pid, _machine(), start, job, restarts, now, now, **more)

    @classmethod
    def unreadable(cls, written: float) -> Self:
        """Stands for a damaged file: a lock whose last heartbeat is the time at which the file was written."""
        return cls("", "an unknown host", 0, "", "", "", "", written, written)

    def is_alive(self, now: float) -> bool:
        """Whether its process may still be at work.

        On this machine the process table decides, however old the heartbeat: a stopped process may wake up and write. Of another
        machine only the heartbeat is known, or that SLURM has restarted the job.
        """
        job, restarts = _slurm_job()
        # SLURM restarts a job only after all of its processes have ended.
        if job and self.job == job and self.restarts != restarts:
            return False
        if self.machine == _machine():
            return process_start(self.pid) == self.process_start
        return now - self.heartbeat <= DEAD_AFTER_SECONDS

    def __str__(self) -> str:
        since, last = (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) for when in (self.started, self.heartbeat))
        job = f" (SLURM job {self.job})" if self.job else ""
        return f"process {self.pid} of {self.host}{job}, started {since}, last heartbeat {last}"


AnyHolder = TypeVar("AnyHolder", bound=Holder)


def read_holder(path: Path, kind: type[AnyHolder]) -> AnyHolder | None:
    """The holder in a lock file; None if there is no file.

    A damaged file counts as a lock that was renewed when the file was last written: its process may be about to replace it.
    """
    try:
        return from_plain(kind, parse_json(path.read_bytes()))
    except FileNotFoundError:
        return None
    except ValueError:
        with contextlib.suppress(FileNotFoundError):
            return kind.unreadable(path.stat().st_mtime)
        return None


def living_holder(path: Path) -> Holder | None:
    """The living process that holds a lock file, or None: no process holds it, or the one that did is dead."""
    holder = read_holder(path, Holder)
    if holder is None:
        return None
    with contextlib.suppress(FileNotFoundError):
        # Alive by either clock, that of its machine or that of the file system.
        holder = dataclasses.replace(holder, heartbeat=max(holder.heartbeat, path.stat().st_mtime))
    return holder if holder.is_alive(time.time()) else None


class Lock(contextlib.AbstractContextManager["Lock[AnyHolder]"], Generic[AnyHolder]):
    """Holds a lock file while the block runs; a thread writes the heartbeat.

    On a file system the file is made by linking a complete one to its name, which only one process can do. Object stores have no
    such operation: there it is written and read back, so two processes that start within a second may both hold it.
    """

    error: type[HeldError] = HeldError
    """What is raised where another process holds the lock."""

    def __init__(self, path: Path, label: str, expected: str, record: AnyHolder, *, leave_empty: bool = True):
        """`label` begins every message and `expected` ends it, e.g. `runs/base` and `one process per run directory`.

        Without `leave_empty`, a folder that was made for the lock is removed with it if nothing else was put there.
        """
        self._leave_empty, self._made_folder = leave_empty, False
        self._path, self._label, self._expected, self._record = path, label, expected, record
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lock {path.name}", daemon=True)
        self._taken_by: AnyHolder | None = None

    def __enter__(self) -> Self:
        """Take the lock; its folder is made if needed.

        Raises:
            HeldError: a living process holds it, or took it in the same moment.
        """
        self._made_folder = is_local(self._path) and not self._path.parent.exists()
        self._acquire()
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()
        self._release()
        if self._made_folder and not self._leave_empty:
            with contextlib.suppress(OSError):
                self._path.parent.rmdir()

    def check(self) -> None:
        """Call before writing what a second writer could spoil.

        Raises:
            HeldError: another process took the lock over because this one wrote no heartbeat.
        """
        if self._taken_by:
            raise self.error(f"{self._label}: {self._taken_by}: took it over while this process wrote no heartbeat")

    def _acquire(self) -> None:
        for _ in range(_ATTEMPTS):
            there = self._read()
            if there is not None and self._lives(there):
                raise self.error(f"{self._label}: {there}: works on it; expected {self._expected}")
            if self._create() if there is None else self._take_over():
                return
        raise self.error(f"{self._label}: other processes keep taking {self._path.name}; expected {self._expected}")

    def _lives(self, there: AnyHolder) -> bool:
        """Whether the holder is alive, by both clocks: a heartbeat looks old where the clock of its machine is behind ours."""
        now = time.time()
        if is_local(self._path):
            temporary = self._write_temporary()
            with contextlib.suppress(FileNotFoundError):
                # Both times come from the file system's own clock.
                silent = temporary.stat().st_mtime - self._path.stat().st_mtime
                there = dataclasses.replace(there, heartbeat=max(there.heartbeat, now - silent))
            temporary.unlink(missing_ok=True)
        return there.is_alive(now)

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

    def _take_over(self) -> bool:
        """Replace a dead lock; whether that succeeded.

        Between the look at a dead lock and its replacement another process may have taken it over, and its lock is alive. So the
        replacement needs a lock of its own, and the look is repeated while that is held. A process that was killed in between
        leaves that second lock behind, dead; it is taken over in the same way.
        """
        if not is_local(self._path):
            return self._create()
        takeover = Lock(self._path.with_name(f".{self._path.name}.takeover"), self._label, self._expected, self._record)
        takeover.error = self.error
        takeover._acquire()
        try:
            there = self._read()
            if there is None or self._lives(there):
                return False
            self._write_temporary().replace(self._path)
            return True
        finally:
            takeover._release()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            # A heartbeat that cannot be written (a full disk, a stalled server) must not end the work.
            with contextlib.suppress(OSError):
                self._write_heartbeat()

    def _renewed(self) -> AnyHolder:
        return dataclasses.replace(self._record, heartbeat=time.time())

    def _write_heartbeat(self) -> None:
        there = self._read()
        if there is not None and there.token not in ("", self._record.token):
            self._taken_by = there
            self._ended.set()
            return
        self._record = self._renewed()
        if not is_local(self._path):
            write_json(self._path, dataclasses.asdict(self._record))
            return
        temporary = self._write_temporary()
        # A signal handler may have released the lock in the meantime; writing it again would leave it behind.
        if not self._ended.is_set():
            temporary.replace(self._path)
        temporary.unlink(missing_ok=True)

    def _write_temporary(self) -> Path:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(self._path)
        try:
            with named_errors(self._path):
                temporary.write_text(json.dumps(dataclasses.asdict(self._record), indent=1) + "\n", "utf-8")
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _read(self) -> AnyHolder | None:
        return read_holder(self._path, type(self._record))

    def _is_mine(self) -> bool:
        there = self._read()
        return there is not None and there.token == self._record.token

    def _release(self) -> None:
        if self._taken_by is None and self._is_mine():
            self._path.unlink(missing_ok=True)


def lock_file(path: Path, label: str, expected: str) -> Lock[Holder]:
    """A lock on `path` for a `with` block; see `Lock`. A folder that holds nothing but the lock goes with it."""
    return Lock(path, label, expected, Holder.of_this_process(), leave_empty=False)


def process_start(pid: int) -> str | None:
    """Start time of a process of this machine in the kernel's unit; None if it is gone or a zombie.

    Without /proc only whether it exists: "unknown" or None.
    """
    with contextlib.suppress(OSError):
        # The command in parentheses may contain spaces, so fields are counted from its end: state first, start time 19 later.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def _create_exclusively(path: Path, content: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _slurm_job() -> tuple[str, str]:
    return os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")


def _machine() -> str:
    """Identifies where process numbers are valid: this boot of this machine, and the process namespace of this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
