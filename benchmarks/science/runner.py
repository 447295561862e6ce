"""Runs the commands of a study as processes of their own: several at a time, each once, continued after an interruption."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

from benchmarks.science.jobs import Job
from data_prep.sources.ingest.folder_lock import lock_folder
from mose.errors import MoseError
from mose.files.atomic_file import write_json

# The module behind each command, started with this Python: a study in an environment uses no other environment's commands.
MODULES = {"mose-data": "data_prep.cli", "mose-pretrain": "pretrain.cli", "mose-finetune": "finetune.cli"}
MARKERS, LOGS = "jobs", "logs"
Execute = Callable[[Sequence[str], Path], int]


@dataclass
class Outcome:
    """What became of the jobs of one call: names of those done, and reasons by name of the others."""

    done: list[str] = field(default_factory=list)
    stopped: dict[str, str] = field(default_factory=dict)
    """Not run, because a gate is closed."""
    failed: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    """Not run, because something that it needs is missing or the time is up."""


@dataclass
class Processes:
    """Starts commands and ends those that still run when the runner itself ends."""

    threads: int
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def execute(self, words: Sequence[str], log: Path) -> int:
        """Run one command to its end with its output in `log`; returns the exit code."""
        line = [sys.executable, "-m", MODULES[words[0]], *words[1:]]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        environment.setdefault("DS_ACCELERATOR", "cpu")
        with log.open("wb") as file:
            file.write(f"$ {' '.join(words)}\n".encode())
            file.flush()
            process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT, env=environment)
            self.running.append(process)
            return process.wait()

    def stop(self) -> None:
        """End what still runs."""
        for process in self.running:
            if process.poll() is None:
                process.terminate()


class Runner:
    """The jobs of a study in its folder; `jobs/NAME.json` marks a finished one, `logs/NAME.log` has its output."""

    def __init__(self, folder: Path, jobs: Sequence[Job], execute: Execute, stop: Callable[[], None] = lambda: None):
        """Every job must come after those that it needs; `stop` ends the commands that `execute` has started."""
        self.folder, self.jobs, self.execute, self.stop = folder, list(jobs), execute, stop
        self.fingerprints: dict[str, str] = {}
        self.outcome = Outcome()

    def run(self, workers: int, seconds: float = 0.0) -> Outcome:
        """Run what is not done yet; after `seconds` (0: no limit) nothing more is started.

        Raises:
            MoseError: another process runs this study, or a finished job was run with other settings.
        """
        deadline = time.monotonic() + seconds if seconds else float("inf")
        with lock_folder(self.folder, "wait until it has ended, or choose another output"):
            for name in (MARKERS, LOGS):
                (self.folder / name).mkdir(exist_ok=True)
            with ThreadPoolExecutor(workers) as pool:
                try:
                    self._run(pool, workers, deadline)
                except BaseException:
                    # Without it the pool would wait for commands that may take an hour.
                    self.stop()
                    raise
        return self.outcome

    def _run(self, pool: ThreadPoolExecutor, workers: int, deadline: float) -> None:
        left, running = list(self.jobs), dict[Future[str], Job]()
        while True:
            left = [job for job in left if not self._is_settled(job)]
            ready = [job for job in left if self._is_ready(job)] if time.monotonic() < deadline else []
            for job in ready[: workers - len(running)]:
                left.remove(job)
                running[pool.submit(self._start, job)] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                self._finish(running.pop(future), future)
        self.outcome.waiting |= {job.name: "the time is up" for job in left}

    def _is_ready(self, job: Job) -> bool:
        return all(name in self.outcome.done for name in job.needs)

    def _is_settled(self, job: Job) -> bool:
        """Whether there is nothing to run for a job: it is done, its gate is closed, or something that it needs will not come.

        Jobs are asked in order, so that one answer reaches all that depend on it.
        """
        outcome = self.outcome
        if missing := next((name for name in job.needs if name in outcome.failed or name in outcome.waiting), ""):
            outcome.waiting[job.name] = f"needs {missing}"
            return True
        if closed := next((name for name in job.needs if name in outcome.stopped), ""):
            outcome.stopped[job.name] = outcome.stopped[closed]
            return True
        if not self._is_ready(job):
            return False
        if reason := job.gate() if job.gate else "":
            outcome.stopped[job.name] = reason
            self._print(job, f"not run: {reason}")
            return True
        if self._is_done(job):
            outcome.done.append(job.name)
            return True
        return False

    def _marker(self, job: Job) -> Path:
        return self.folder / MARKERS / f"{job.name.replace('/', '__')}.json"

    def _log(self, job: Job) -> Path:
        return self.folder / LOGS / f"{job.name.replace('/', '__')}.log"

    def _is_done(self, job: Job) -> bool:
        words, path = job.words(), self._marker(job)
        self.fingerprints[job.name] = self._fingerprint(job, words)
        if not path.is_file() or not job.result.exists():
            return False
        marker = json.loads(path.read_text("utf-8"))
        if marker["fingerprint"] != self.fingerprints[job.name]:
            raise MoseError(
                f"{path}: {job.name} was run with other settings than the recipe and the study have now; choose another output, "
                f"or remove {self.folder} to run everything again"
            )
        return True

    def _fingerprint(self, job: Job, words: Sequence[str]) -> str:
        """Changes with the command, the configs that it names, and all that it needs; not with the study's folder."""
        configs = [Path(word).read_text("utf-8") for before, word in pairwise(words) if before == "--config"]
        parts = [word.replace(str(self.folder), "OUTPUT") for word in words]
        needed = [self.fingerprints[name] for name in job.needs]
        return hashlib.sha256(json.dumps([parts, configs, needed]).encode()).hexdigest()[:16]

    def _start(self, job: Job) -> str:
        """Run one job in a thread; returns why it failed, or an empty text."""
        if job.result.exists() and not job.resumes:
            (shutil.rmtree if job.result.is_dir() else Path.unlink)(job.result)
        words, started = job.words(), time.monotonic()
        code = self.execute(words, self._log(job))
        if code != 0 or not job.result.exists():
            return f"exit code {code}: {last_line(self._log(job))}"
        seconds = time.monotonic() - started
        marker = {"fingerprint": self.fingerprints[job.name], "words": words, "seconds": round(seconds, 1)}
        write_json(self._marker(job), {**marker, "finished": datetime.now(timezone.utc).isoformat(timespec="seconds")})
        return ""

    def _finish(self, job: Job, future: Future[str]) -> None:
        if reason := future.result():
            self.outcome.failed[job.name] = reason
            self._print(job, f"failed: {reason}; see {self._log(job)}")
        else:
            self.outcome.done.append(job.name)
            self._print(job, f"{json.loads(self._marker(job).read_text('utf-8'))['seconds']:.0f} s")

    def _print(self, job: Job, text: str) -> None:
        done = len(self.outcome.done) + len(self.outcome.stopped)
        print(f"[{done}/{len(self.jobs)}] {job.name}: {text}", flush=True)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()] if log.is_file() else []
    return lines[-1].strip() if lines else "no output"
