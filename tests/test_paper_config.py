"""Covers configs/mose_1b.yaml: every number of the paper stands in it, with its section beside it."""

from pathlib import Path
from typing import Any

import pytest

from mose.config import load_config, to_plain
from pretrain.config import PretrainConfig

CONFIG = Path(__file__).parent.parent / "configs" / "mose_1b.yaml"

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
