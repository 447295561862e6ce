"""Peak memory of the multi-exit loss at the 1B model's width: as in training, with every exit's logits kept, with full logits.

Each number comes from a process of its own: its peak memory after one forward and backward pass of the heads, minus that before.

python -m benchmarks.loss_memory [--tokens 4096] [--output benchmarks/results/FILE.json]
"""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.process_memory import status_bytes
from mose.files.atomic_file import write_json
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.model_config import ModelConfig
from mose.model.modeling_mose import StarEncoder2Pooler, StarEncoder2PreTrainingHeads
from pretrain.config.objective import PAPER
from pretrain.data.masking import MASKED_SHARE
from pretrain.data.micro_batch import MicroBatch
from pretrain.model import loss as loss_module
from pretrain.model.loss import MultiExitLoss
from pretrain.model.terms.term import Denominators
from pretrain.model.terms.vocabulary import whole_vocabulary

KEPT_ONE, KEPT_ALL, FULL = "one exit's logits at a time", "every exit's logits", "every exit's logits of every token"
# The second exit's gradient of the projection meets the first one's: from there on only logits can add up.
EXITS = (1, 2, 5)
MEGABYTE = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="Real tokens of the batch.")
    parser.add_argument("--output", type=Path, help="JSON file to write.")
    arguments = parser.parse_args()
    figures = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores (1 thread used), {platform.processor() or platform.machine()}, no GPU, float32",
        "tokens": arguments.tokens,
        "masked_share": MASKED_SHARE,
        "one_logits_matrix_megabytes": round(MASKED_SHARE * arguments.tokens) * ModelConfig().vocabulary_size * 4 / MEGABYTE,
        "peak_megabytes": {
            way: {str(exits): peak_of(way, exits, arguments.tokens) for exits in EXITS} for way in (KEPT_ONE, KEPT_ALL, FULL)
        },
    }
    print(json.dumps(figures, indent=1))
    if arguments.output:
        write_json(arguments.output, figures)


def peak_of(way: str, exits: int, tokens: int) -> float:
    """Megabytes that the loss of `exits` exits adds at its peak, in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_measure, (way, exits, tokens)))


def _measure(way: str, exits: int, tokens: int) -> float:
    torch.set_num_threads(1)
    shape = ModularStarEncoderConfig(**ModelConfig().hugging_face())
    heads, pooler = StarEncoder2PreTrainingHeads(shape), StarEncoder2Pooler(shape)
    states = [torch.randn(tokens, shape.hidden_size, requires_grad=True) for _ in range(exits)]
    masked_M = torch.arange(tokens if way == FULL else round(MASKED_SHARE * tokens))
    for parameter in heads.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = status_bytes("VmHWM")
    loss = MultiExitLoss(pooler, heads, whole_vocabulary(shape.vocab_size), PAPER, [1.0] * exits)
    with _checkpointing(way):
        share, _ = loss(states, _one_row(tokens, masked_M), Denominators(len(masked_M), 1))
        share.backward()  # type: ignore[no-untyped-call]
    return (status_bytes("VmHWM") - before) / MEGABYTE


def _one_row(tokens: int, masked_M: Tensor) -> MicroBatch:
    """A row of that many tokens, of which those of `masked_M` are predicted; the loss reads nothing else of it."""
    places_N, bounds = torch.arange(tokens), torch.tensor([0, tokens], dtype=torch.int32)
    row = {"mixed_B": torch.tensor([1]), "row_numbers_B": torch.tensor([0]), "padded_slots": 0}
    return MicroBatch(places_N, places_N, bounds, tokens, masked_M, masked_M, **row)  # type: ignore[arg-type]


def _checkpointing(way: str) -> Any:
    def keep(function: Callable[..., Any], *inputs: Tensor, **_: Any) -> Any:
        return function(*inputs)

    return mock.patch.object(loss_module, "checkpoint", loss_module.checkpoint if way == KEPT_ONE else keep)


if __name__ == "__main__":
    main()
