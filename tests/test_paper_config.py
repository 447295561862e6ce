"""Covers configs/mose_1b*.yaml: every number of the paper stands there with its section, and fits the 512 GPUs planned for."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mose.config import load_config, to_plain
from pretrain.analysis.estimate import GIB, derived_numbers, estimate_memory
from pretrain.config.run import Layout, PretrainConfig

CONFIG = Path(__file__).parent.parent / "configs" / "mose_1b.yaml"

# Layout and micro-batch tokens of the runs planned for 512 GPUs of 80 GB, by what their names end in.
LARGE_RUNS = {
    "512gpu_tp1_zero1": (Layout(world_size=512, tensor_ranks=1, data_ranks=512, micro_batches=1, partition_ranks=4), 4 * 2048),
    "512gpu_tp4_dp128": (Layout(world_size=512, tensor_ranks=4, data_ranks=128, micro_batches=1), 16 * 2048),
    "64gpu": (Layout(world_size=64, tensor_ranks=1, data_ranks=64, micro_batches=4, partition_ranks=4), 8 * 2048),
    "8gpu": (Layout(world_size=8, tensor_ranks=1, data_ranks=8, micro_batches=32), 8 * 2048),
}

# The paper's list: dotted name in our config, value, section where the paper prints it.
PAPER: list[tuple[str, Any, str]] = [
    ("model.num_layers", 36, "section 3"),
    ("model.num_heads", 16, "section 3"),
    ("model.num_key_value_heads", 4, "section 3"),
    ("model.width", 1024, "section 3"),
    ("model.feed_forward_width", 12288, "section 3"),
    ("model.exit_layers", [4, 9, 18, 27, 36], "section 2.2"),
    ("model.max_length", 2048, "section 3.1"),
    ("data.masking_share", 0.15, "section 2.1"),
    ("batch.global_rows", 4 * 1024 * 1024 // 2048, "section 3.1"),
    ("max_steps", 245_000, "section 3.1"),
    ("optimizer.beta1", 0.9, "section 3.1"),
    ("optimizer.beta2", 0.95, "section 3.1"),
    ("optimizer.epsilon", 1e-6, "section 3.1"),
    ("optimizer.weight_decay", 0.1, "section 3.1"),
    ("optimizer.vocabulary_learning_rate_factor", 1.0, "section 3.1: one rate"),
    ("schedule.peak_learning_rate", 6.24e-4, "section 3.1"),
    ("schedule.warmup_steps", 4000, "section 3.1"),
    ("schedule.milestones", [120_000, 185_000, 220_000, 230_000, 240_000], "section 3.1"),
    ("schedule.factors", [0.36, 0.1, 0.031, 0.01, 0.001], "section 3.1"),
]


def value_at(values: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


@pytest.mark.parametrize(("name", "value", "section"), PAPER)
def test_config_holds_the_number_and_names_its_section(name: str, value: Any, section: str) -> None:
    assert value_at(to_plain(load_config(PretrainConfig, CONFIG)), name) == value
    key = name.rpartition(".")[2]
    line = next(line for line in CONFIG.read_text("utf-8").splitlines() if line.strip().startswith(f"{key}:"))
    assert section in line


def test_rope_base_rounds_to_the_papers() -> None:
    # Section 3 prints 10^6; the released config holds 999,999.44.
    assert round(load_config(PretrainConfig, CONFIG).model.rope_theta, -2) == 1e6


def test_defaults_are_the_papers_run() -> None:
    paper, default = load_config(PretrainConfig, CONFIG), PretrainConfig()
    for section in ("model", "optimizer", "schedule", "batch"):
        assert getattr(paper, section) == getattr(default, section)


@pytest.mark.parametrize("name", LARGE_RUNS)
def test_a_large_run_divides_its_rows_and_fits_their_memory(name: str) -> None:
    config = load_config(PretrainConfig, CONFIG.with_name(f"mose_1b_{name}.yaml"))
    expected, tokens = LARGE_RUNS[name]
    layout = Layout.of(config, expected.world_size)
    assert (layout, config.micro_batch_tokens) == (expected, tokens)
    assert config.batch.global_rows % (layout.data_ranks * config.batch.micro_batch_rows) == 0
    # A fifth is left to fragmentation and what communication keeps.
    assert estimate_memory(config, layout).total / GIB < 0.8 * 80
    numbers = dict(derived_numbers(config, layout, ()))
    assert numbers["ranks"] == f"{layout.world_size} = {layout.data_ranks} data x {layout.tensor_ranks} tensor, ZeRO 1"
    total = round(float(numbers["memory per device: total"].split()[0]))
    assert f"{total} GiB a device (estimate)" in CONFIG.with_name(f"mose_1b_{name}.yaml").read_text("utf-8")


@pytest.mark.parametrize("name", LARGE_RUNS)
def test_a_large_run_is_the_papers_but_for_its_layout(name: str) -> None:
    paper, large = (
        load_config(PretrainConfig, CONFIG),
        load_config(PretrainConfig, CONFIG.with_name(f"mose_1b_{name}.yaml")),
    )
    own = {field: getattr(large, field) for field in ("parallel", "batch", "intervals", "deepspeed")}
    assert dataclasses.replace(paper, **own) == large
    assert large.batch.global_rows == paper.batch.global_rows
    assert large.intervals.checkpoint_every_steps == 1000
    assert large.deepspeed["zero_optimization"]["overlap_comm"] is True  # type: ignore[index]
