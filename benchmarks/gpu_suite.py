"""Measurements of one CUDA device within minutes: kernels against float32 on the CPU, then the 1B model's training step.

Tokens per second and share of the device's peak by micro-batch, memory, a save, a resume in another layout and an export
(where DeepSpeed is installed), padded against unpadded rows, one exit against five,
attention back ends, activation checkpointing, compiled layers, the width of the vocabulary projection; in the order of their
worth. Each part is a process with a deadline, and the JSON is written after each: a fault or a hang loses one part. Needs this
repository, torch and numpy; what is absent (DeepSpeed, flash-attn, transformers) is named and skipped, and so are parts for
which no time is left. With --rehearse, and without CUDA, a tiny model goes through every part on the CPU; it measures nothing.

python -m benchmarks.gpu_suite [--minutes 8] [--rehearse] [--output benchmarks/results/FILE.json]
"""

import argparse
import datetime
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts.parts import CHECKS, TIMINGS, run_part
from mose.files.atomic_file import write_json

OPTIONAL = ("flash_attn", "deepspeed", "megatron", "transformers")
PARTS = (*CHECKS, *TIMINGS)
# Most seconds of one part: the micro-batches, the slowest part, take two minutes or less where one step takes a second.
PART_SECONDS = 180.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="No part goes on after this.")
    parser.add_argument("--output", type=Path, help="JSON file to write, after each part.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="Parts to run (default: all).")
    rehearse = "A tiny model on the CPU, even where there is CUDA: whether every part runs."
    parser.add_argument("--rehearse", action="store_true", help=rehearse)
    together = "Run all parts in one process, as a rehearsal does: nothing keeps a fault or a hang from the other parts."
    parser.add_argument("--one-process", action="store_true", help=together)
    arguments = parser.parse_args()
    # Asked without starting CUDA in this process, whose memory would be missing in the parts.
    device = torch.device("cuda", 0) if torch.cuda.is_available() and not arguments.rehearse else torch.device("cpu")
    run = run_here if arguments.one_process else run_apart
    figures = measure(device, arguments.minutes * 60, arguments.parts, arguments.output, run)
    show(figures)
    sys.exit(1 if figures["failed"] else 0)


def run_here(name: str, device: torch.device, rows: int, seconds: float) -> tuple[dict[str, Any], str]:
    """As `run_apart`, in this process and without a deadline."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        run_part(name, str(device), rows, result)
        return json.loads(result.read_text("utf-8")), ""


def run_apart(name: str, device: torch.device, rows: int, seconds: float) -> tuple[dict[str, Any], str]:
    """What a part in a process of its own found, and why it ended early (empty: it did not)."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.gpu_parts.parts", name, str(device), str(rows), str(result)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
            last_line = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "")
            fault = f"ended with code {ended.returncode}: {last_line[:200]}" if ended.returncode else ""
        except subprocess.TimeoutExpired:
            fault = f"ended after {seconds:.0f} s"
        found = json.loads(result.read_text("utf-8")) if result.is_file() else {}
    return found, fault


def measure(
    device: torch.device,
    seconds: float,
    chosen: Sequence[str],
    output: Path | None = None,
    run: Callable[[str, torch.device, int, float], tuple[dict[str, Any], str]] = run_apart,
) -> dict[str, Any]:
    """The content of the JSON: the chosen parts, as far as there is time.

    `failed` names checks that did not pass, and parts that ended early with the reason; what such a part had found stays.
    """
    began = time.monotonic()
    figures: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": "CPU (a rehearsal with a tiny model)",
        "torch": torch.__version__,
        "seconds": 0.0,
        "left_out": [f"{name}: not installed" for name in OPTIONAL if importlib.util.find_spec(name) is None],
        "failed": [],
        "checks": [],
    }
    faults: list[str] = []
    rows = 4
    for name in chosen:
        left = seconds - (time.monotonic() - began)
        if left <= 0:
            figures["left_out"].append(f"{name}: no time left")
            continue
        print(f"{time.monotonic() - began:5.0f} s  {name}", file=sys.stderr, flush=True)
        found, fault = run(name, device, rows, min(left, PART_SECONDS))
        rows = found.pop("rows", rows)
        figures["checks"] += found.pop("checks", [])
        figures["left_out"] += [one for one in found.pop("left_out", []) if one not in figures["left_out"]]
        figures |= found
        faults += [f"{name}: {fault}"] if fault else []
        figures["failed"] = [check["name"] for check in figures["checks"] if not check["passed"]] + faults
        figures["seconds"] = round(time.monotonic() - began, 1)
        if output is not None:
            write_json(output, figures)
    return figures


def show(figures: dict[str, Any]) -> None:
    """Print the checks line by line, everything else as JSON, and what failed at the end."""
    print(f"{figures['device']}, torch {figures['torch']}")
    for check in figures["checks"]:
        state = "ok" if check["passed"] else "FAILED"
        print(f"{check['name']:45} {check['difference']:.1e} (bar {check['bar']:.0e}) {state}")
    print(json.dumps({name: value for name, value in figures.items() if name not in ("checks", "model")}, indent=1))
    print("\n".join(f"FAILED  {one}" for one in figures["failed"]) or "all parts that ran passed")


if __name__ == "__main__":
    main()
