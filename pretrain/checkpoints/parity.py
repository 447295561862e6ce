"""Compares an exported folder with the trained model: runs the written file and compares the states of every exit.

Letters: N real tokens, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mose.checkpoint.converted_checkpoint import read_model_config
from mose.checkpoint.safetensors_file import WEIGHTS_NAME, SafetensorsReader
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import StarEncoder2

PARITY_NAME = "parity.json"
# Of the largest value. fp32: sums over tensor-parallel ranks are added in another order than on one device. bf16: eight bits
# a number, over dozens of layers; weights merged wrongly are off by about 1 (docs/decisions.md).
TOLERANCES = {"fp32": 5e-6, "bf16": 0.1}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parity_report(folder: Path, probe: Path, training_precision: str, stored: torch.dtype) -> dict[str, Any]:
    """Largest difference at each exit of `folder` to the states [N, D] that the live model gave when it was saved.

    It is computed in the precision that the model was trained in, from the file that was written, a layer at a time.

    Raises:
        MoseError: there is no probe, a state is not finite, or an exit differs by more than the precision explains.
    """
    if not probe.is_file():
        raise MoseError(f"{probe}: no such file; expected the live model's states, written with each checkpoint")
    live, config = load_file(probe), read_model_config(folder)
    exits = {}
    for layer, state_ND in exit_states(folder, config, live, PRECISIONS[training_precision]).items():
        live_ND = live[f"exit_{layer:02d}"].float()
        difference, largest = float((state_ND - live_ND).abs().max()), float(live_ND.abs().max())
        exits[f"{layer:02d}"] = {"largest_difference": difference, "largest_value": largest, "relative": difference / largest}
    # torch's largest value is NaN where one is; Python's may be any of the others.
    worst = float(torch.tensor([values["relative"] for values in exits.values()], dtype=torch.float64).max())
    rounded = training_precision == "fp32" and stored is not torch.float32
    tolerance = TOLERANCES["bf16" if rounded else training_precision]
    # Written so that a difference which is not a number is refused, too.
    if not worst <= tolerance:
        raise MoseError(
            f"{probe.parent}: exported model differs by {worst:.1e} of the largest value, at most {tolerance} expected"
        )
    report = {"precision_of_training": training_precision, "stored_as": str(stored).removeprefix("torch.")}
    return report | {"tolerance": tolerance, "worst": worst, "exits": exits}


@torch.no_grad()
def exit_states(
    folder: Path, config: ModularStarEncoderConfig, probe: dict[str, Tensor], dtype: torch.dtype
) -> dict[int, Tensor]:
    """The state [N, D] (float32) of each exit of `folder` on the probe's rows; holds one layer's weights at a time."""
    with torch.device("meta"):
        trunk = StarEncoder2(config).eval()
    with SafetensorsReader(folder / WEIGHTS_NAME) as reader, _streamed(trunk, reader, dtype):
        longest = int(torch.diff(probe["cu_seqlens"]).max())
        states = trunk(probe["input_ids_N"], probe["positions_N"], probe["cu_seqlens"], longest)
    return {layer: state_ND.float() for layer, state_ND in zip(config.computed_exit_layers, states, strict=True)}


@contextmanager
def _streamed(trunk: StarEncoder2, reader: SafetensorsReader, dtype: torch.dtype) -> Iterator[None]:
    """Give each part of a model on the meta device its weights when it runs, and take them back afterwards."""
    handles = []
    for prefix, module in trunk.named_modules(prefix="starEncoder2"):
        empty = dict(module.named_parameters(recurse=False))
        if not empty:
            continue

        def fill(module: nn.Module, _: Any, prefix: str = prefix, names: tuple[str, ...] = tuple(empty)) -> None:
            for name in names:
                setattr(module, name, nn.Parameter(reader.read(f"{prefix}.{name}").to(dtype), requires_grad=False))

        def drop(module: nn.Module, _: Any, __: Any, empty: dict[str, nn.Parameter] = empty) -> None:
            for name, parameter in empty.items():
                setattr(module, name, parameter)

        handles += [module.register_forward_pre_hook(fill), module.register_forward_hook(drop)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
