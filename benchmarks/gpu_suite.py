"""Measurements of one CUDA device within minutes: kernels against float32 on the CPU, then the 1B model's training step.

Tokens per second and share of the device's peak by micro-batch, memory, padded against unpadded rows, one exit against five,
attention back ends, activation checkpointing, compiled layers, the width of the vocabulary projection. Needs this
repository, torch and the pure-Python packages it imports; what is absent (DeepSpeed, flash-attn) is named and skipped, and
so are parts for which no time is left. Without CUDA a tiny model goes through every part as a rehearsal; it measures nothing.

python -m benchmarks.gpu_suite [--minutes 8] [--output benchmarks/results/FILE.json]
"""

import argparse
import dataclasses
import datetime
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_parts.correctness import Check, check_attention, check_model, check_optimizer
from benchmarks.gpu_parts.training_steps import (
    Sweep,
    activation_checkpointing,
    attention_backends,
    compiled_layers,
    exits,
    head_widths,
    micro_batches,
    padding,
)
from mose.files.atomic_file import write_json
from mose.model.model_config import ModelConfig
from pretrain.monitoring.throughput import device_peak

OPTIONAL = ("flash_attn", "deepspeed", "megatron")
REHEARSAL = ModelConfig(
    vocabulary_size=1024,
    width=64,
    feed_forward_width=256,
    num_layers=4,
    num_heads=4,
    num_key_value_heads=2,
    exit_layers=(1, 2, 4),
    max_length=128,
)

CHECKS: dict[str, Callable[[torch.device], list[Check]]] = {
    "attention": check_attention,
    "model": check_model,
    "optimizer": check_optimizer,
}
TIMINGS: dict[str, Callable[[Sweep], dict[str, Any]]] = {
    "micro_batches": micro_batches,
    "padding": padding,
    "exits": exits,
    "attention_backends": attention_backends,
    "activation_checkpointing": activation_checkpointing,
    "compiled_layers": compiled_layers,
    "head_widths": head_widths,
}
PARTS = (*CHECKS, *TIMINGS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="No part is begun after this.")
    parser.add_argument("--output", type=Path, help="JSON file to write.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="Parts to run (default: all).")
    arguments = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    figures = measure(device, arguments.minutes * 60, arguments.parts)
    show(figures)
    if arguments.output:
        write_json(arguments.output, figures)
    sys.exit(1 if figures["failed"] else 0)


def measure(device: torch.device, seconds: float, chosen: Sequence[str]) -> dict[str, Any]:
    """The content of the JSON: the chosen parts, as far as there is time; `failed` names checks that did not pass."""
    model = ModelConfig() if device.type == "cuda" else REHEARSAL
    sweep = Sweep(model, device, device_peak(device), steps=8 if device.type == "cuda" else 3)
    began, checks, results = time.monotonic(), list[Check](), dict[str, Any]()
    left_out = [f"{name}: not installed" for name in OPTIONAL if not _installed(name)]
    for name in chosen:
        if time.monotonic() - began > seconds:
            left_out.append(f"{name}: no time left")
            continue
        print(f"{time.monotonic() - began:5.0f} s  {name}", file=sys.stderr, flush=True)
        if name in CHECKS:
            checks += CHECKS[name](device)
        else:
            results[name] = TIMINGS[name](sweep)
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (a rehearsal with a tiny model)",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - began, 1),
        "model": dataclasses.asdict(model),
        "left_out": left_out,
        "failed": [check.name for check in checks if not check.passed],
        "checks": [{**dataclasses.asdict(check), "passed": check.passed} for check in checks],
        **results,
    }


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def show(figures: dict[str, Any]) -> None:
    """Print the checks as a table and everything else as JSON."""
    table = Table("check", "difference", "bar", "", title=f"{figures['device']}, torch {figures['torch']}")
    for check in figures["checks"]:
        table.add_row(check["name"], f"{check['difference']:.1e}", f"{check['bar']:.0e}", "ok" if check["passed"] else "FAILED")
    Console(soft_wrap=True).print(table)
    print(json.dumps({name: value for name, value in figures.items() if name not in ("checks", "model")}, indent=1))


if __name__ == "__main__":
    main()
