"""Activation checkpointing and torch.compile: memory and time of a forward and backward pass against neither. CPU, one run.

The shape has the 1B model's proportions (feed-forward 12 times the width), 12 layers deep. Time: medians, the ways taking turns
in one process. Memory: one process per way; its peak during a pass, minus what it held before.

python -m benchmarks.activation_checkpointing [--repeats 5] [--output benchmarks/results/FILE.json]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.process_memory import status_bytes
from mose.files.atomic_file import write_json
from mose.model.cost.memory import activation_numbers
from mose.model.cost.shape import EncoderShape
from mose.model.model_config import ModelConfig
from mose.seeding import derive_key, generator
from pretrain.analysis.estimate import memory_layout
from pretrain.config.run import BatchConfig, DataConfig, Layout, ParallelConfig, PretrainConfig
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.terms.term import Denominators
from pretrain.model.training_model import TrainingModel, build_training_model
from pretrain.parallel.context import ParallelContext

ROWS, SLOTS, MASKED = 4, 512, 0.15
WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"activation_checkpointing": "selective"},
    "full": {"activation_checkpointing": "full"},
    "compile": {"compile": True},
    "compile, full": {"compile": True, "activation_checkpointing": "full"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "DROPOUT"), help="only print the bytes that one way takes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(peak_bytes(made_config(WAYS[arguments.peak[0]], float(arguments.peak[1]))))
        return
    figures = measure(arguments.repeats)
    print(json.dumps(figures, indent=1))
    if arguments.output:
        write_json(arguments.output, figures)


def made_config(parallel: dict[str, Any], dropout: float) -> PretrainConfig:
    """A model of some size, in fp32."""
    dropouts = {f"{name}_dropout": dropout for name in ("attention", "residual", "embedding")}
    shape: dict[str, Any] = {"width": 256, "feed_forward_width": 3072, "num_layers": 12, "num_heads": 4, "num_key_value_heads": 1}
    model = ModelConfig(vocabulary_size=4096, exit_layers=(2, 3, 6, 9, 12), max_length=SLOTS, **shape, **dropouts)
    data, batch = DataConfig(masking_share=MASKED), BatchConfig(ROWS, ROWS)
    return PretrainConfig(data=data, batch=batch, model=model, parallel=ParallelConfig(precision="fp32", **parallel))


def measure(repeats: int) -> dict[str, Any]:
    """Numbers of every way without dropout, and of the uncompiled ones with it."""
    ways = {(name, 0.0): fields for name, fields in WAYS.items()}
    ways |= {(name, 0.1): fields for name, fields in WAYS.items() if "compile" not in fields}
    seconds, losses = times({place: made_config(fields, place[1]) for place, fields in ways.items()}, repeats)
    results = []
    for (name, dropout), fields in ways.items():
        plain = results[0 if dropout == 0.0 else len(WAYS)] if len(results) not in (0, len(WAYS)) else None
        peak, second = measured_apart(name, dropout), statistics.median(seconds[name, dropout])
        results.append(
            {
                "way": name,
                "dropout": dropout,
                "bytes": peak,
                "seconds": second,
                "bytes_to_none": peak / plain["bytes"] if plain else 1.0,
                "seconds_to_none": second / plain["seconds"] if plain else 1.0,
                "estimated_activations_to_none": estimated(fields) / estimated({}),
                "loss": losses[name, dropout],
            }
        )
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores (1 thread used), {platform.processor() or platform.machine()}, no GPU",
        "shape": {"width": 256, "feed_forward": 3072, "layers": 12, "tokens": ROWS * SLOTS, "precision": "fp32"},
        "ways": results,
    }


def estimated(parallel: dict[str, Any]) -> float:
    """The memory of activations that `--dry-run` estimates."""
    config = made_config(parallel, 0.0)
    return activation_numbers(EncoderShape.of(config.model), memory_layout(config, Layout.of(config, 1)))


def times(configs: dict[tuple[str, float], PretrainConfig], repeats: int) -> tuple[dict[Any, list[float]], dict[Any, float]]:
    """CPU seconds of each pass, taking turns; the first turn, which compiles, is not counted."""
    models = {place: made_model(config) for place, config in configs.items()}
    seconds: dict[Any, list[float]] = {place: [] for place in configs}
    losses = {}
    for turn in range(repeats + 1):
        for place, model in models.items():
            began = time.process_time()
            losses[place] = one_pass(model, configs[place])
            seconds[place] += [time.process_time() - began] if turn else []
    return seconds, losses


def made_model(config: PretrainConfig) -> TrainingModel:
    """The model on one rank, without DeepSpeed."""
    context = ParallelContext(0, 0, 0, Layout(1, 1, 1, 1), torch.device("cpu"), None, None)
    return build_training_model(config.model, config.parallel, 0, torch.float32, context)


def one_pass(model: TrainingModel, config: PretrainConfig) -> float:
    """Forward and backward of made-up rows; gradients stay allocated."""
    batch = made_batch(config.model.vocabulary_size)
    torch.manual_seed(derive_key("benchmark") >> 1)
    share, _ = model(batch, Denominators(batch.num_masked, batch.num_rows))
    share.backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()
    return float(share.detach())


def made_batch(vocabulary_size: int) -> MicroBatch:
    """Full rows of random tokens."""
    random = generator("benchmark", "activation checkpointing")
    tokens = torch.from_numpy(random.integers(5, vocabulary_size, ROWS * SLOTS))
    masked = torch.from_numpy(random.permutation(ROWS * SLOTS)[: int(MASKED * ROWS * SLOTS)]).sort().values
    return MicroBatch(
        input_ids_N=tokens,
        positions_N=torch.arange(SLOTS).repeat(ROWS),
        cu_seqlens=torch.arange(0, ROWS * SLOTS + 1, SLOTS, dtype=torch.int32),
        max_length=SLOTS,
        masked_N_indices=masked,
        labels_M=tokens[masked],
        mixed_B=torch.arange(ROWS) % 2,
        row_numbers_B=torch.arange(ROWS),
        padded_slots=0,
    )


def measured_apart(way: str, dropout: float) -> int:
    """Run this script for one way in a process whose freed memory goes back to the system at once."""
    command = [sys.executable, __file__, "--peak", way, str(dropout)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def peak_bytes(config: PretrainConfig) -> int:
    """The most that a pass holds beyond weights and gradients, which an earlier pass has allocated (and compiled for)."""
    model = made_model(config)
    one_pass(model, config)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    one_pass(model, config)
    return status_bytes("VmHWM") - before


if __name__ == "__main__":
    main()
