"""The supervisor of one start: writes the host file, starts srun, passes on signals, ends a run that hangs, requeues the job."""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from cluster import slurm
from cluster.jobs.config import SuperviseConfig
from cluster.preflight.before_start import Preflight
from cluster.supervise.decide import Decision, cause_of, decide
from cluster.supervise.history import CANCELLED, CHECKED, FINISHED, HUNG, STOPPED, History, Start
from cluster.supervise.progress import DIVERGED_STAGE, STOPPED_STAGE, ProgressWatch, file_exists, newest_checkpoint_step
from cluster.supervise.stacks import explain_stacks, read_stacks, suspects
from mose import command
from mose.files.atomic_file import write_json, write_text
from mose.run_directory import RunDirectory

DONE_NAME = "done.json"
# Where users may not requeue, sites can list it as RequeueExit.
REQUEUE_CODE = 75
# The requeue ends this process; until then nothing else may begin.
_END_BY_REQUEUE_SECONDS = 300
# srun reports the end of its tasks soon after they have ended; a node that is gone may keep it waiting.
_END_SECONDS = 60
# Below the ports that systems hand out.
_FIRST_PORT, _PORTS = 10_000, 20_000
_PORT_TRIES = 100


class Supervisor:
    """One start of a job; `run` returns the exit code of the batch script."""

    def __init__(self, config: SuperviseConfig, command: Sequence[str]):
        self._config, self._command = config, list(command)
        self._job = os.environ.get("SLURM_JOB_ID", "0")
        # Not set in the first start.
        self._restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self._run = RunDirectory(Path(config.run)) if config.run else None
        self._history = History(Path(config.launch_folder))
        self._name = config.run or config.launch_folder
        self._warned = self._cancelled = False
        self._insist_at: float | None = None
        self._wake = threading.Event()

    def run(self) -> int:
        """Run the command once, and queue the job again or end it."""
        for number, handler in ((signal.SIGUSR1, self._note_warning), (signal.SIGTERM, self._note_end)):
            signal.signal(number, handler)
        if self._is_finished(code=None):
            self._write_done(time.time())
            return self._act(Decision(False, 0, f"{self._name} is finished"))
        nodes = self._nodes()
        first_step = newest_checkpoint_step(self._run) if self._run else 0
        begun = Start(self._job, self._restarts, tuple(nodes), time.time(), first_step, saved_step=first_step)
        self._history.append(begun)
        self._prepare(nodes)
        ended = self._preflight(begun) or self._start(begun)
        self._history.append(ended)
        if ended.cause == FINISHED:
            self._write_done(ended.ended)
        return self._act(decide(self._name, self._history.read(), self._config.max_restarts, self._config.recovery))

    def _note_warning(self, number: int, frame: FrameType | None) -> None:
        self._warned = True
        self._wake.set()

    def _note_end(self, number: int, frame: FrameType | None) -> None:
        self._cancelled = True
        self._wake.set()

    def _say(self, message: str, *, error: bool = False) -> None:
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        print(f"{when} job {self._job}: {message}", file=sys.stderr if error else sys.stdout, flush=True)

    def _is_finished(self, code: int | None) -> bool:
        """Whether the run is finished; `code` is that of the command that has just ended, or None before it is started."""
        done = Path(self._config.launch_folder) / DONE_NAME
        if not self._config.finished:
            return code == 0 if code is not None else file_exists(done)
        if self._config.needs_code_0 and code != 0 and not (code is None and file_exists(done)):
            return False
        return file_exists(Path(self._config.finished))

    def _write_done(self, now: float) -> None:
        """Leave the file by which pipelines and `status` know that the run is finished."""
        path = Path(self._config.launch_folder) / DONE_NAME
        if not file_exists(path):
            write_json(path, {"job": self._job, "unix_seconds": now})

    def _nodes(self) -> list[str]:
        listed = os.environ.get("SLURM_JOB_NODELIST")
        return slurm.expand_nodes(listed) if listed else [socket.gethostname()]

    def _prepare(self, nodes: Sequence[str]) -> None:
        """What the ranks read: the host file, where they meet, and a folder of stacks without those of an earlier start."""
        if self._config.hostfile:
            lines = [f"{node} slots={self._config.ranks_per_node}\n" for node in nodes]
            write_text(Path(self._config.hostfile), "".join(lines))
        os.environ["MASTER_ADDR"] = nodes[0]
        start = f"{Path(self._config.launch_folder).resolve()} {self._job} {self._restarts}"
        os.environ["MASTER_PORT"] = str(meeting_port(start))
        if self._run is not None:
            shutil.rmtree(self._run.stacks, ignore_errors=True)

    def _preflight(self, begun: Start) -> Start | None:
        """Measure the nodes; the start with its end if it is not to go on, or None."""
        if self._run is None or not self._config.preflight.enabled:
            return None
        before = [start for start in self._history.read() if start.cause == CHECKED]
        excluded = [node for start in before for node in start.suspects]
        path = Path(self._config.launch_folder) / f"preflight-{self._job}-{self._restarts}.json"
        check = Preflight(self._config, begun.nodes, self._run.path, path)
        found, lines = check.run(excluded, stop=lambda: self._warned or self._cancelled)
        for line in lines:
            self._say(line, error=True)
        cause = CANCELLED if self._cancelled else STOPPED if self._warned else CHECKED
        if cause == CHECKED and not found.exclude and not found.ends:
            return None
        ended = dataclasses.replace(begun, ended=time.time(), cause=cause, last_step=begun.first_step)
        if cause != CHECKED:
            return dataclasses.replace(ended, code=command.STOPPED)
        note = found.reason or "; ".join(lines)
        return dataclasses.replace(ended, code=1, suspects=() if found.ends else found.exclude, note=note)

    def _start(self, begun: Start) -> Start:
        """Run the command to its end; returns the start with its end."""
        recovery, now = self._config.recovery, time.monotonic()
        watch = ProgressWatch(self._run, recovery.hang_seconds, recovery.start_seconds, now) if self._run else None
        hung, trained, warned = "", 0.0, False
        suspected: tuple[str, ...] = ()
        process = subprocess.Popen(self._command)
        while process.poll() is None:
            now = time.monotonic()
            if (self._warned or self._cancelled) and not warned:
                # srun passes it on: the ranks finish their step, save, and end with 75.
                warned = True
                process.send_signal(signal.SIGTERM if self._cancelled else signal.SIGUSR1)
                self._insist_at = now + self._config.patience_seconds
            if self._insist_at is not None and now >= self._insist_at:
                # Ranks that hang must not let the job run into its limit.
                self._insist_at = None
                process.terminate()
            # Also after a warning, so that a first step that was done meanwhile counts.
            silence = watch.silence(now) if watch is not None else ""
            if silence and not hung and not warned:
                hung, suspected = self._end_hang(silence, process)
            if watch is not None and watch.training and not trained:
                trained = time.time()
            # A signal ends the wait at once, its handler runs in this thread.
            self._wake.wait(self._config.poll_seconds)
            self._wake.clear()
        if watch is not None:
            # Short starts, and the steps between a warning and the end, fall between two looks.
            watch.silence(time.monotonic())
            trained = trained or (time.time() if watch.training else 0.0)
        if self._config.hostfile:
            Path(self._config.hostfile).unlink(missing_ok=True)
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        cause = cause_of(
            finished=self._is_finished(code),
            hung=bool(hung),
            # Ranks that were preempted and saved say so; srun's code may be that of one that it ended meanwhile.
            stopped=self._warned or (watch is not None and watch.last_word == STOPPED_STAGE),
            cancelled=self._cancelled,
            diverged=watch is not None and watch.last_word == DIVERGED_STAGE,
            code=code,
        )
        saved = newest_checkpoint_step(self._run) if self._run else begun.first_step
        return dataclasses.replace(
            begun,
            trained=trained,
            ended=time.time(),
            cause=cause,
            code=code,
            # A start that fails soon after a save may have done its steps between two heartbeats.
            last_step=max(watch.step if watch else 0, begun.first_step, saved),
            saved_step=saved,
            suspects=suspected,
            note=hung if cause == HUNG else "",
        )

    def _end_hang(self, reason: str, process: subprocess.Popen[bytes]) -> tuple[str, tuple[str, ...]]:
        """Write the stacks of all ranks, name the rank that the others wait for, and kill the step; the reason, and its nodes."""
        assert self._run is not None
        self._say(f"{reason}: asking the ranks for their stacks", error=True)
        self._signal_ranks("USR2")
        self._wait_for_stacks(self._config.recovery.stacks_seconds)
        before = read_stacks(self._run.stacks)
        named = f"{reason}; {explain_stacks(before)}"
        # A stopped process takes signals only when it is continued; then its stack is on record, too.
        self._signal_ranks("CONT")
        self._wait_for_stacks(2.0)
        kept = Path(self._config.launch_folder) / f"stacks-{self._job}-{self._restarts}"
        self._say(f"{named}; stacks of all ranks: {kept}; killing the ranks", error=True)
        self._signal_ranks("KILL")
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        # The next start writes stacks of its own.
        with contextlib.suppress(OSError):
            self._run.stacks.rename(kept)
        return named, tuple(dict.fromkeys(one.host for one in suspects(before)))

    def _signal_ranks(self, name: str) -> None:
        with contextlib.suppress(slurm.SlurmError):
            for step in slurm.steps(self._job):
                slurm.call(["scancel", f"--signal={name}", step])

    def _wait_for_stacks(self, seconds: float) -> None:
        """Wait until every rank that has a file of stacks wrote into it, at most `seconds`."""
        assert self._run is not None
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stacks = read_stacks(self._run.stacks)
            if stacks and all(one.place for one in stacks):
                return
            time.sleep(0.2)

    def _act(self, decision: Decision) -> int:
        self._say(decision.message, error=decision.code not in (0, REQUEUE_CODE))
        if not decision.again:
            return decision.code
        # SLURM ends this process with SIGTERM soon after the requeue; until then it can still change the queued job.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            slurm.call(["scontrol", "requeue", self._job])
        except slurm.SlurmError as error:
            self._say(str(error), error=True)
            return REQUEUE_CODE
        if decision.exclude:
            # Only a job that waits takes it, and a job waits from the requeue on.
            with contextlib.suppress(slurm.SlurmError):
                # The update replaces the list; the user may have excluded nodes at submission.
                nodes = dict.fromkeys([*slurm.excluded(self._job), *decision.exclude])
                slurm.call(["scontrol", "update", f"JobId={self._job}", f"ExcNodeList={','.join(nodes)}"])
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not self._cancelled:
            _sleep(_END_BY_REQUEUE_SECONDS)
        return REQUEUE_CODE


def meeting_port(start: str) -> int:
    """A free port of this node, the job's first one, on which the ranks of `start` meet.

    It depends on the start and not only on the job: ranks of a start that was lost may still hold theirs, and clusters that share
    a machine count their jobs alike.
    """
    first = zlib.crc32(start.encode()) % _PORTS
    for number in range(_PORT_TRIES):
        port = _FIRST_PORT + (first + number) % _PORTS
        with contextlib.suppress(OSError), socket.socket() as probe:
            # As torch's store does: without it the ports of connections that ended a minute ago count as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return port
    return _FIRST_PORT + first


def _sleep(seconds: float) -> None:
    """Wait for the end by a signal; a process of its own, so that a test can shorten it."""
    with contextlib.suppress(OSError):
        subprocess.run(["sleep", str(int(seconds))], check=False)
