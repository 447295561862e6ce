"""One part of the GPU suite in this process: `python -m benchmarks.gpu_parts.parts NAME DEVICE ROWS RESULT.json`."""

import dataclasses
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

# The functions of `correctness` and of `training_steps`; names, because those modules import what a bare machine lacks.
CHECKS = {"attention": "check_attention", "model": "check_model", "optimizer": "check_optimizer"}
TIMINGS = (
    "micro_batches",
    "checkpoints",
    "padding",
    "exits",
    "attention_backends",
    "activation_checkpointing",
    "compiled_layers",
    "head_widths",
)


def run_part(name: str, device_name: str, rows: int, result: Path) -> None:
    """Write what the part finds to `result`, of a timing after each figure, so that a deadline keeps those before it."""
    from benchmarks.gpu_parts.stand_ins import install_stand_ins

    left_out = [f"{absent}: not installed, a stand-in is used" for absent in install_stand_ins()]
    left_out += _without_broken_flash_attention()
    import torch

    from mose.files.atomic_file import write_json
    from mose.model.model_config import ModelConfig
    from pretrain.monitoring.throughput import device_peak

    device = torch.device(device_name)
    on_gpu = device.type == "cuda"
    model = ModelConfig() if on_gpu else _rehearsal()
    found: dict[str, Any] = {"left_out": left_out, "model": dataclasses.asdict(model)}
    if on_gpu:
        found["device"] = torch.cuda.get_device_name(device)
    if name in CHECKS:
        checks = getattr(importlib.import_module("benchmarks.gpu_parts.correctness"), CHECKS[name])(device)
        found["checks"] = [{**dataclasses.asdict(check), "passed": check.passed} for check in checks]
        write_json(result, found)
        return
    if name == "padding" and any(one.startswith("transformers:") for one in left_out):
        write_json(result, found | {"left_out": [*left_out, "padding: needs transformers, whose padded model it compares with"]})
        return
    needed = [package for package in ("deepspeed", "safetensors", "transformers") if _is_absent(package, left_out)]
    if name == "checkpoints" and needed:
        left_out.append(f"checkpoints: needs {', '.join(needed)}, with which a run saves and exports")
        write_json(result, found | {"left_out": left_out})
        return
    timings = importlib.import_module("benchmarks.gpu_parts.training_steps")
    place = timings
    if name == "checkpoints":
        from pretrain.parallel.context import choose_accelerator

        choose_accelerator()
        place = importlib.import_module("benchmarks.gpu_parts.checkpoints")
    sweep = timings.Sweep(model, device, device_peak(device), 8 if on_gpu else 3, rows)
    sweep.keep = lambda figures: write_json(result, found | {name: figures, "rows": sweep.rows})
    sweep.keep(getattr(place, name)(sweep))


def _is_absent(package: str, left_out: list[str]) -> bool:
    stood_in = any(one.startswith(f"{package}:") for one in left_out)
    return stood_in or importlib.util.find_spec(package) is None


def _rehearsal() -> Any:
    from mose.model.model_config import ModelConfig

    return ModelConfig(
        vocabulary_size=1024,
        width=64,
        feed_forward_width=256,
        num_layers=4,
        num_heads=4,
        num_key_value_heads=2,
        exit_layers=(1, 2, 4),
        max_length=128,
    )


def _without_broken_flash_attention() -> list[str]:
    """Keep the model from a flash-attn that is installed but built for another torch: it fails at its first import."""
    if importlib.util.find_spec("flash_attn") is None:
        return []
    try:
        importlib.import_module("flash_attn")
    except Exception as error:
        os.environ["MOSE_ATTENTION_BACKEND"] = "torch_varlen"
        return [f"flash_attn: installed, but does not import: {(str(error) or type(error).__name__).splitlines()[0]}"]
    return []


if __name__ == "__main__":
    run_part(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
