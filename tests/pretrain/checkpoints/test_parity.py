"""Covers the parity report: states streamed from the file equal the whole model's, and what is refused."""

import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mose.checkpoint.converted_checkpoint import random_like, save_model
from mose.checkpoint.safetensors_file import SafetensorsReader
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from pretrain.checkpoints.parity import exit_states, parity_report

CONFIG = ModularStarEncoderConfig(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    matryoshka_layers=[1, 2, 4],
    initializer_range=0.3,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A converted folder and the probe that its model gave."""
    model = random_like(CONFIG, 1)
    (tmp_path / "out").mkdir()
    save_model(tmp_path / "out", model)
    inputs = {"input_ids_N": torch.arange(30) % 60, "positions_N": torch.cat((torch.arange(20), torch.arange(10)))}
    inputs["cu_seqlens"] = torch.tensor([0, 20, 30], dtype=torch.int32)
    with torch.no_grad():
        states = model.starEncoder2(*inputs.values(), 20)
    live = {f"exit_{layer:02d}": state for layer, state in zip((1, 2, 4), states, strict=True)}
    save_file(inputs | live, tmp_path / "probe.safetensors")
    return tmp_path / "out"


def probe_of(folder: Path) -> Path:
    return folder.parent / "probe.safetensors"


def test_streamed_states_are_the_whole_models(folder: Path) -> None:
    live = load_file(probe_of(folder))
    states = exit_states(folder, CONFIG, live, torch.float32)
    assert all(torch.equal(state, live[f"exit_{layer:02d}"]) for layer, state in states.items())
    report = parity_report(folder, probe_of(folder), "fp32", torch.float32)
    assert (report["worst"], report["exits"].keys()) == (0.0, {"01", "02", "04"})


def test_only_one_parts_weights_are_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that was read is gone before the part after the next is read: at most two parts, of two tensors each."""
    read, alive, most = SafetensorsReader.read, [], [0]

    def counted(reader: SafetensorsReader, name: str) -> torch.Tensor:
        tensor = read(reader, name)
        alive.append(weakref.ref(tensor.untyped_storage()))
        most.append(sum(storage() is not None for storage in alive))
        return tensor

    monkeypatch.setattr(SafetensorsReader, "read", counted)
    exit_states(folder, CONFIG, load_file(probe_of(folder)), torch.float32)
    assert len(alive) > 40
    assert max(most) <= 4


def change(folder: Path, name: str, change: float) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name] + change
    save_file(tensors, path)


@pytest.mark.parametrize(("precision", "amount"), [("fp32", 1e-3), ("bf16", 3.0), ("fp32", float("nan")), ("bf16", float("nan"))])
def test_a_file_that_differs_is_refused(precision: str, amount: float, folder: Path) -> None:
    change(folder, "starEncoder2.layers.1.mlp.c_proj.bias", amount)
    with pytest.raises(MoseError, match="exported model differs by"):
        parity_report(folder, probe_of(folder), precision, torch.float32)


def test_a_missing_probe_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"none\.safetensors: no such file"):
        parity_report(folder, tmp_path / "none.safetensors", "fp32", torch.float32)
