"""A stand-in for `mose-pretrain train` in drills: the same files, signals and exit codes, without torch, at 50 steps per second.

Ranks meet at every step through files. `faults.json` in the working directory lists what goes wrong, each thing once:
{"rank": 1, "step": 5, "kind": "exit 9" | "stop" | "sleep" | "hold"}; `exit` faults with "always" come back in every start. A
rank that holds waits until it is asked to stop, or killed.
"""

import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    words = sys.argv[1:]
    if "--print_config" in words:
        print(Path(words[words.index("--config") + 1]).read_text())
        return
    if "--dry-run" in words:
        return
    run = Path(words[words.index("--output") + 1])
    last = int(Path(words[words.index("--config") + 1]).read_text().partition("max_steps: ")[2].split()[0])
    rank, ranks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    meet = run / f"meet-{os.environ['SLURM_JOB_ID']}-{restart}"
    for folder in (run / "checkpoints", run / "stacks", meet):
        folder.mkdir(parents=True, exist_ok=True)
    stacks = (run / "stacks" / f"rank-{rank:05d}.txt").open("w")
    stacks.write(f"rank {rank} of {ranks}, host {os.uname().nodename}, process {os.getpid()}\n")
    stacks.flush()
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: asked.append(number))
    train(run, meet, rank, ranks, last, asked)


def train(run: Path, meet: Path, rank: int, ranks: int, last: int, asked: list[int]) -> None:
    saved = max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)
    for step in range(saved, last):
        stop = wait_for_others(meet, rank, ranks, step, bool(asked))
        if stop:
            save(run, rank, step)
            beat(run, rank, step, "stopped")
            sys.exit(75)
        beat(run, rank, step, "forward")
        fail(rank, step, asked)
        time.sleep(0.02)
        if rank == 0:
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step + 1, "start": meet.name}) + "\n")
        if (step + 1) % 10 == 0:
            save(run, rank, step + 1)
    beat(run, rank, last, "finished")


def wait_for_others(meet: Path, rank: int, ranks: int, step: int, stop: bool) -> bool:
    """A barrier; whether any rank was asked to stop."""
    (meet / f"{step}-{rank}.partial").write_text("stop" if stop else "on")
    (meet / f"{step}-{rank}.partial").rename(meet / f"{step}-{rank}")
    paths = [meet / f"{step}-{other}" for other in range(ranks)]
    while not all(path.exists() for path in paths):
        time.sleep(0.01)
    return any(path.read_text() == "stop" for path in paths)


def save(run: Path, rank: int, step: int) -> None:
    folder = run / "checkpoints" / f"step-{step:06d}"
    if rank == 0 and step and not folder.exists():
        partial = run / "checkpoints" / ".partial"
        partial.mkdir()
        (partial / "manifest.json").touch()
        partial.rename(folder)


def beat(run: Path, rank: int, step: int, stage: str) -> None:
    if rank == 0:
        values = {"step": step, "stage": stage, "unix_seconds": time.time()}
        (run / ".heartbeat").write_text(json.dumps(values))
        (run / ".heartbeat").rename(run / "heartbeat.json")


def fail(rank: int, step: int, asked: list[int]) -> None:
    path = Path("faults.json")
    for number, fault in enumerate(json.loads(path.read_text()) if path.exists() else []):
        if (fault["rank"], fault["step"]) != (rank, step):
            continue
        try:
            Path(f"fault-{number}").touch(exist_ok=bool(fault.get("always")))
        except FileExistsError:
            continue
        if fault["kind"] == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault["kind"] == "sleep":
            time.sleep(3600)
        elif fault["kind"] == "hold":
            while not asked:
                time.sleep(0.02)
        else:
            sys.exit(int(fault["kind"].split()[1]))


if __name__ == "__main__":
    main()
