"""The real `mose-pretrain` of drills: it records the rows of every step that is done, and fails in mid-step where a file says so.

Each rank appends a line per step to OUTPUT.rows/rank-00000.jsonl, after the weights were updated. OUTPUT.faults.json lists what
goes wrong inside a step, between its forward and its backward pass: {"rank": 1, "step": 5, "kind": "exit 9" | "stop" | "sleep" |
"hold"}. Each fault happens once, unless it is marked "always". A rank that holds waits until it is asked to stop, or killed.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Entry point."""
    words = sys.argv[1:]
    if words[:1] == ["train"] and not {"--print_config", "--dry-run"} & set(words):
        trace(words[words.index("--output") + 1])
    from pretrain.cli import main as run

    run()


def trace(output: str) -> None:
    """Put the record and the faults around `train_step`."""
    from mose.files.stop_signal import StopSignal
    from pretrain import train
    from pretrain.monitoring.step_log import row_numbers
    from pretrain.parallel.stage import BACKWARD
    from pretrain.step import Guard

    original, request, asked = train.train_step, StopSignal.request, []
    faults = Path(f"{output}.faults.json")
    listed = json.loads(faults.read_text()) if faults.exists() else []
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))

    def noted(self: StopSignal, reason: str) -> None:
        asked.append(reason)
        request(self, reason)

    def traced(engine: Any, batches: Any, rate: float, seed: int, step: int, context: Any, counted: Any, guard: Guard) -> Any:
        def enter(stage: str, micro_batches_left: int) -> None:
            guard.enter(stage, micro_batches_left)
            if stage == BACKWARD:
                fail(output, listed, context.rank, step, asked)

        result = original(engine, batches, rate, seed, step, context, counted, Guard(guard.loss_limit, enter))
        path = Path(f"{output}.rows/rank-{context.rank:05d}.jsonl")
        path.parent.mkdir(exist_ok=True)
        line = {"restart": restart, "step": step + 1, "unix_seconds": time.time(), "rows": sorted(row_numbers(batches))}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result

    train.train_step = traced
    StopSignal.request = noted  # type: ignore[method-assign]


def fail(output: str, faults: list[dict[str, Any]], rank: int, step: int, asked: list[str]) -> None:
    """Let happen what is listed for this rank and step."""
    for number, fault in enumerate(faults):
        if (fault["rank"], fault["step"]) != (rank, step):
            continue
        try:
            Path(f"{output}.fault-{number}").touch(exist_ok=bool(fault.get("always")))
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
            # At once, as a process that the kernel ends: no handler, no farewell to the other ranks.
            os._exit(int(fault["kind"].split()[1]))


if __name__ == "__main__":
    main()
