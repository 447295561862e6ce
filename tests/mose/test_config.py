"""Covers configs: saved and loaded back equal, overrides, fingerprints, bad files as one line."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from mose.config import fingerprint, load_config, save_config, to_plain
from mose.errors import MoseError
from pretrain.config.run import PretrainConfig


def test_saved_config_loads_back_equal(tmp_path: Path) -> None:
    config = load_config(PretrainConfig, overrides={"model.exit_layers": [1, 2], "model.num_layers": 2, "output": "a b"})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(PretrainConfig, tmp_path / "config.yaml") == config
    assert config.model.exit_layers == (1, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_steps: soon", "max_steps"),
        ("model: {depth: 3}", "model.depth"),
        ("- 1", "a.yaml"),
        ("model: {exit_layers: [4, 99]}", "exit 99 is deeper"),
        ("parallel: {precision: bf16, zero_stage: 0}", "steps once with empty gradients"),
        ("parallel: {tensor_parallel_size: 4}\nmodel: {num_heads: 6, num_key_value_heads: 2, width: 24}", "num_heads 6"),
    ],
)
def test_bad_files_are_one_line(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(MoseError) as raised:
        load_config(PretrainConfig, path)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


@dataclass(frozen=True)
class Pair:
    """Two values."""

    a: int
    b: tuple[int, ...]


def test_fingerprint_changes_with_any_value() -> None:
    assert fingerprint(Pair(1, (2,))) == fingerprint({"b": [2], "a": 1})
    assert len({fingerprint(Pair(a, b)) for a in (1, 2) for b in ((2,), (2, 3), (3, 2))}) == 6
    assert to_plain(Pair(1, (2,))) == {"a": 1, "b": [2]}
