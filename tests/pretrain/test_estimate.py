"""Covers `--dry-run`: the 1B config's derived numbers against the paper's arithmetic, and that nothing is allocated."""

from pathlib import Path

import psutil

from mose.config import load_config
from pretrain.config import Layout, PretrainConfig
from pretrain.estimate import GIB, derived_numbers, estimate_memory

PAPER_RUN = Path(__file__).parents[2] / "configs" / "mose_1b.yaml"


def test_numbers_of_the_papers_run() -> None:
    config = load_config(PretrainConfig, PAPER_RUN)
    before = psutil.Process().memory_info().rss
    numbers = dict(derived_numbers(config, Layout.of(config, 512), ()))
    assert psutil.Process().memory_info().rss - before < 64 << 20
    assert numbers["parameters"].startswith("1,104,091,214")
    assert numbers["token slots a step"].startswith("4,194,304")
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
