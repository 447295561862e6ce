"""Covers `--dry-run`: the 1B config's derived numbers against the paper's arithmetic, and that nothing is allocated."""

from pathlib import Path

import psutil

from mose.config import load_config
from pretrain.analysis.estimate import GIB, derived_numbers, estimate_memory
from pretrain.config.run import Layout, PretrainConfig

PAPER_RUN = Path(__file__).parents[3] / "configs" / "mose_1b.yaml"


def test_numbers_of_the_papers_run() -> None:
    config = load_config(PretrainConfig, PAPER_RUN)
    before = psutil.Process().memory_info().rss
    numbers = dict(derived_numbers(config, Layout.of(config, 512), ()))
    assert psutil.Process().memory_info().rss - before < 64 << 20
    assert numbers["parameters"].startswith("1,104,091,214")
    assert numbers["token slots per step"].startswith("4,194,304")
    assert numbers["accumulation steps"].startswith("1 micro-batches of 8,192 tokens")
    assert "1.028T slots" in numbers["steps"]
    assert "4: 161.6 M" in numbers["parameters at each exit"]


def test_zero_stages_cut_what_they_promise() -> None:
    config = load_config(PretrainConfig, PAPER_RUN)
    parts = {}
    for stage in (1, 2, 3):
        staged = load_config(PretrainConfig, PAPER_RUN, {"parallel.zero_stage": stage})
        parts[stage] = estimate_memory(staged, Layout.of(config, 8))
    assert parts[1].gradients // 8 == parts[2].gradients
    assert parts[2].weights // 8 == parts[3].weights
    assert parts[1].optimizer == parts[3].optimizer
    # 1.1B parameters in bf16 are 2.06 GiB; AdamW's float32 state is six times that, over 8 ranks.
    assert round(parts[1].weights / GIB, 2) == 2.06
    assert parts[1].optimizer == parts[1].weights // 2 * 12 // 8


def test_checkpointing_and_sequence_parallelism_cut_activations_as_they_do_in_the_docstring() -> None:
    def activations(size: int = 1, **fields: object) -> int:
        overrides = {f"parallel.{name}": value for name, value in fields.items()}
        config = load_config(PretrainConfig, PAPER_RUN, {"parallel.tensor_parallel_size": size, **overrides})
        return estimate_memory(config, Layout.of(config, 8)).activations

    # Of 8 D + 4 KV + 2 F = 8,192 + 1,024 + 24,576 numbers, selective gives up F = 12,288, full keeps D and one layer.
    none, selective, full = (activations(activation_checkpointing=kind) for kind in ("none", "selective", "full"))
    assert round(1 - selective / none, 3) == round(12288 / 33792, 3)
    assert round(full / none, 3) == round((36 * 1024 + 33792) / (36 * 33792), 3)
    whole, shards = activations(4), activations(4, sequence_parallel=True)
    assert round(shards / whole, 3) == round((2048 + 3072 / 4 + 28672 / 4) / (5120 + 28672 / 4), 3)
