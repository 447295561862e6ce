"""A private SLURM of a few virtual nodes on this machine, for tests: Debian's daemons, each a child of this process.

One host plays every node: `slurmd -N nK` runs once per node, each on its own port. As root (or where user namespaces are allowed)
each node has a UTS and a mount namespace of its own, so that its host name is nK and nK resolves to 127.0.0.(10 + K) inside it;
the machine's own host name and /etc/hosts stay as they are. All state lies under one folder, and `stop` ends only processes
that belong to it.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.distributed import free_port

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
WAIT_SECONDS = 120
# A requeued job may begin after this many seconds plus one; SLURM refuses less than five.
CREDENTIAL_SECONDS = 5
_CONFIG = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire={credential_seconds}
CredType=cred/munge
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=6
KillWait=2
MinJobAge=600
CompleteWait=0
JobRequeue=1
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=DEFAULT CPUs={cpus} RealMemory=1000 State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
_ENTER = 'hostname "$1" && mount --bind "$2" /etc/hosts && exec "$3" -D -N "$1"'


def missing_daemon() -> str:
    """The first command of SLURM that this machine lacks; empty where all are there."""
    return next((name for name in DAEMONS if which(name) is None), "")


def which(name: str) -> str | None:
    """A command's path; daemons lie in /usr/sbin, which ordinary users need not have in their PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _namespace_words() -> list[str]:
    """`unshare` with the options that this user needs for a host name of one's own; empty where none is allowed."""
    ways = [["unshare", "--uts", "--mount"], ["unshare", "--user", "--map-current-user", "--keep-caps", "--uts", "--mount"]]
    for words in ways:
        with contextlib.suppress(OSError):
            if subprocess.run([*words, "hostname", "n0"], capture_output=True, check=False).returncode == 0:
                return words
    return []


class PrivateSlurm:
    """`nodes` virtual nodes n1, n2, ... of `cpus` cores each, in a partition `main` that a partition `high` preempts."""

    def __init__(self, folder: Path, nodes: int, cpus: int = 2):
        self.folder, self.nodes = folder, [f"n{number}" for number in range(1, nodes + 1)]
        self.namespaces = _namespace_words()
        """Empty where nodes share the machine's host name: then n1 resolves nowhere, and ranks cannot meet there."""
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "spool", "run", "log", "munge"):
            (folder / name).mkdir(parents=True)
        (folder / "munge").chmod(0o700)
        # munged refuses a socket in a folder that others cannot reach, since it also serves other users.
        for path in (folder, folder / "run"):
            path.chmod(0o755)
        (folder / "munge/key").write_bytes(os.urandom(128))
        (folder / "munge/key").chmod(0o600)
        self._write_config(cpus)

    def _write_config(self, cpus: int) -> None:
        host = socket.gethostname()
        hosts, lines = [f"127.0.0.1 localhost {host}"], []
        for number, node in enumerate(self.nodes, start=1):
            address, name = (f"127.0.0.{10 + number}", node) if self.namespaces else ("127.0.0.1", host)
            hosts.append(f"{address} {node}")
            lines.append(f"NodeName={node} NodeHostname={name} NodeAddr={address} Port={free_port()}")
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        values = {"host": host, "user": user, "folder": self.folder, "port": free_port(), "cpus": cpus}
        text = _CONFIG.format(**values, nodes="\n".join(lines), credential_seconds=CREDENTIAL_SECONDS)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")

    @property
    def environment(self) -> dict[str, str]:
        """What makes SLURM's commands talk to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start every daemon, and wait until all nodes are idle."""
        run, munge = self.folder / "run", self.folder / "munge"
        options = [f"--key-file={munge}/key", f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid"]
        options += [f"--log-file={munge}/munged.log", f"--seed-file={munge}/seed", "--num-threads=2", "--foreground"]
        self._spawn("munged", ["munged", *options])
        wait_for((run / "munge.socket").exists, "munged", WAIT_SECONDS)
        self._spawn("slurmctld", ["slurmctld", "-D"])
        for node in self.nodes:
            self.start_node(node)
        wait_for(lambda: self.call("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D") == str(len(self.nodes)), "idle nodes")

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        slurmd = which("slurmd") or "slurmd"
        plain = [slurmd, "-D", "-N", node]
        inside = [*self.namespaces, "sh", "-c", _ENTER, "sh", node, str(self.folder / "hosts"), slurmd]
        self._spawn(node, inside if self.namespaces else plain)

    def _spawn(self, name: str, words: list[str]) -> None:
        environment = {**os.environ, **self.environment}
        # A job gets the environment of the one who submits it; the nodes' own daemons need none of a test's variables.
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            words = [which(words[0]) or words[0], *words[1:]]
            self._running[name] = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill_node(self, node: str) -> None:
        """A node dies: its slurmd, the steps on it and their tasks are killed at once."""
        self._running[node].kill()
        self._running.pop(node).wait()
        for pid in self._processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the jobs, the daemons and whatever jobs left behind."""
        with contextlib.suppress(AssertionError):
            self.call("scancel", "--full", "--user", str(os.getuid()))
            wait_for(lambda: not self.call("squeue", "-h"), "the end of all jobs", 10)
        # Last started, first ended: nodes report to slurmctld, and both authenticate by munged.
        for process in reversed(self._running.values()):
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _processes(self, node: str = "") -> list[int]:
        """Steps and tasks of this cluster, of one node or of all; a task's environment names its cluster and its node."""
        found: set[int] = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                values = set((folder / "environ").read_bytes().split(b"\0"))
                if f"SLURM_CONF={self.folder / 'slurm.conf'}".encode() not in values:
                    continue
                is_task = any(value.startswith(b"SLURM_JOB_ID=") for value in values)
                is_step = (folder / "comm").read_text().strip() == "slurmstepd"
                if is_task and (not node or f"SLURMD_NODENAME={node}".encode() in values):
                    found.add(int(folder.name))
                    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                    if Path(f"/proc/{parent}/comm").read_text().strip() == "slurmstepd":
                        found.add(parent)
                elif is_step and not node:
                    found.add(int(folder.name))
        return sorted(found - {os.getpid()})

    def tasks(self, job: str, word: str) -> list[int]:
        """Process numbers of a job's tasks whose command line holds `word`."""
        found = []
        for pid in self._processes():
            with contextlib.suppress(OSError):
                values = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                if f"SLURM_JOB_ID={job}".encode() in values and word in command:
                    found.append(pid)
        return found

    def call(self, *words: str) -> str:
        """Run one of SLURM's commands, bounded in time; returns its output."""
        done = subprocess.run(
            words, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """The fields of `scontrol show job`; finished jobs are kept for ten minutes."""
        return dict(re.findall(r"(\w[\w:/]*)=(\S*)", self.call("scontrol", "-o", "show", "job", number)))

    def wait_state(self, number: str, *states: str, seconds: float = 500) -> dict[str, str]:
        """Wait until a job is in one of `states`."""
        wait_for(lambda: self.job(number)["JobState"] in states, f"job {number} in {states}, is {self.job(number)}", seconds)
        return self.job(number)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait until `condition` holds; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not seen within {seconds:g} s"
        time.sleep(0.1)
