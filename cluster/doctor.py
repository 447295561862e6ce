"""What a cluster needs before a job is launched from this machine, one finding per line with what to do; changes nothing."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import slurm
from mose.errors import MoseError, first_line

GIB = 1 << 30
# A checkpoint of the 1B model takes 15 GB, and three are kept.
LEAST_BYTES, LEAST_INODES = 50 * GIB, 100_000
STALE_LOCK_SECONDS = 600
_IMPORT_SECONDS = 120
# Checked by a process of their own: an import of a library that was built for another torch may end the process.
_IMPORTS = {
    "torch": "import torch; print(torch.__version__, 'CUDA', torch.version.cuda, 'NCCL', torch.cuda.nccl.version() "
    "if torch.version.cuda else None)",
    "flash-attn": "import flash_attn; print(flash_attn.__version__)",
}


@dataclass(frozen=True)
class Finding:
    """One thing that a job needs; `advice` is empty where it is as it should be."""

    name: str
    value: str
    advice: str = ""


def examine(folders: Sequence[Path], constraints: Path | None) -> list[Finding]:
    """Every finding; a check that fails by itself is one, so that the others are still printed."""
    checks: tuple[Callable[[], list[Finding]], ...] = (
        lambda: _versions(constraints),
        _imports,
        _compiler,
        _build_locks,
        _offline,
        lambda: [finding for folder in folders for finding in _space(folder)],
        _slurm,
    )
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except (OSError, ValueError, MoseError) as error:
            findings.append(Finding("check", "could not be made", first_line(error)))
    return findings


def _versions(constraints: Path | None) -> list[Finding]:
    """Installed versions against the tested set; a local part such as +cu128 does not count."""
    if constraints is None or not constraints.is_file():
        return [Finding("versions", "no constraints file to compare with", "--constraints constraints-cuda.txt")]
    pinned = dict(_pins(constraints))
    differing = []
    for name, version in pinned.items():
        try:
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
        if found != version:
            differing.append(f"{name} {found} (tested: {version})")
    advice = f"pip install -c {constraints.name} -e ." if differing else ""
    return [Finding("versions", ", ".join(differing[:6]) or f"as in {constraints.name}", advice)]


def _pins(constraints: Path) -> list[tuple[str, str]]:
    """Names and versions of a constraints file, and of those that it includes."""
    text = constraints.read_text("utf-8")
    included = [constraints.with_name(name) for name in re.findall(r"^-c (\S+)$", text, re.MULTILINE)]
    pins = [pin for path in included if path.is_file() for pin in _pins(path)]
    # Lines for one Python only name a version each; which one counts depends on a marker, so they are left out.
    return pins + re.findall(r"^([\w.-]+)==([\w.!]+)$", text, re.MULTILINE)


def _imports() -> list[Finding]:
    found = []
    for name, code in _IMPORTS.items():
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            found.append(
                Finding(name, f"import takes more than {_IMPORT_SECONDS} s", "put the environment on a faster file system")
            )
            continue
        if done.returncode == 0:
            found.append(Finding(name, done.stdout.strip()))
        elif "ModuleNotFoundError" in done.stderr:
            advice = "" if name == "flash-attn" else "install the `train` extra"
            found.append(
                Finding(name, "not installed" + ("; torch's own kernel is used" if name == "flash-attn" else ""), advice)
            )
        else:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            found.append(Finding(name, f"does not import: {reason[:160]}", "build it for this torch, or uninstall it"))
    return found


def _compiler() -> list[Finding]:
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    advice = "" if found else "DeepSpeed builds operators at the first start: load a module with a C++ compiler"
    return [Finding("C++ compiler", found or "none", advice)]


def extensions_folder() -> Path:
    """Where torch builds operators at run time."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")


def _build_locks() -> list[Finding]:
    """A job that was killed while it built an operator leaves a lock, and every later run waits for it without a word."""
    folder, now = extensions_folder(), time.time()
    stale = [path for path in folder.glob("**/lock") if now - path.stat().st_mtime > STALE_LOCK_SECONDS]
    if not stale:
        return [Finding("build locks", f"none that is stale in {folder}")]
    return [Finding("build locks", ", ".join(map(str, stale[:3])), "rm it, unless a build is running: every run waits for it")]


def _offline() -> list[Finding]:
    on = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    advice = "" if on else "export HF_HUB_OFFLINE=1: compute nodes without a way out wait for time-outs"
    return [Finding("offline mode", "HF_HUB_OFFLINE is set" if on else "HF_HUB_OFFLINE is not set", advice)]


def _space(folder: Path) -> list[Finding]:
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return [Finding(f"space of {folder}", "cannot be asked", first_line(error))]
    room = found.f_bavail * found.f_frsize
    little = f"expected {LEAST_BYTES // GIB} GiB: checkpoints of 15 GB, three are kept" if room < LEAST_BYTES else ""
    findings = [Finding(f"space of {folder}", f"{room / GIB:,.0f} GiB free", little)]
    if found.f_files:
        few = f"expected {LEAST_INODES:,}: an environment alone has 50,000 files" if found.f_favail < LEAST_INODES else ""
        findings.append(Finding(f"inodes of {folder}", f"{found.f_favail:,} free", few))
    return findings


def _slurm() -> list[Finding]:
    try:
        text = slurm.call(["scontrol", "show", "config"])
    except slurm.SlurmError as error:
        return [Finding("SLURM", str(error), "launch from a login node of the cluster")]
    values = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    findings = [Finding("SLURM", f"{values.get('SLURM_VERSION', '?')}, cluster {values.get('ClusterName', '?')}")]
    requeue = values.get("JobRequeue", "1")
    advice = "jobs ask for it by --requeue; `scontrol requeue` must be allowed to users" if requeue == "0" else ""
    findings.append(Finding("requeue", "on" if requeue != "0" else "off by default", advice))
    largest = values.get("MaxArraySize", "1001")
    findings.append(Finding("largest array", largest, "" if largest != "0" else "arrays are off: run tasks one by one"))
    return findings
