"""A training checkpoint of any layout -> a converted checkpoint, with a report of how far its exits are from the live model.

Letters: N real tokens, D width.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mose.atomic_file import atomic_folder, write_json
from mose.config import load_config
from mose.converted_checkpoint import FACTS_NAME, copy_tokenizer, save_model, truncate_at
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder
from mose.model.sharding import Sharding, sharding_of
from mose.run_directory import RunDirectory, checkpoint_name
from pretrain.checkpoint import latest_checkpoint, read_checkpoint_manifest
from pretrain.config import PretrainConfig
from pretrain.parallel.engine import STATE_TAG

PARITY_NAME = "parity.json"
# fp32 only: sums over tensor-parallel ranks are added in another order than on one device (docs/decisions.md).
FP32_TOLERANCE = 5e-6


def export_run(run_folder: Path, output: Path, step: int | None = None, exit_layer: int | None = None) -> dict[str, Any]:
    """Write the run's checkpoint (the latest, or that of `step`) as a converted checkpoint; returns the parity report.

    Raises:
        MoseError: no such run, step or exit; `output` exists; the checkpoint is incomplete; or the fp32 model disagrees.
    """
    if output.exists():
        raise MoseError(f"{output}: already exists; a checkpoint is never overwritten")
    run = RunDirectory(run_folder)
    config = load_config(PretrainConfig, run.config)
    checkpoint = find_checkpoint(run, step)
    manifest = read_checkpoint_manifest(checkpoint)
    with tempfile.TemporaryDirectory(dir=run.checkpoints, prefix=".universal-") as scratch:
        tensors = merge_slices(checkpoint, Path(scratch))
        model = build_exported(config, tensors)
    parity = parity_report(model, checkpoint, config)
    chosen = model if exit_layer is None else truncate_at(model, exit_layer)
    facts = {"run": run_folder.name, "progress": manifest["progress"], "identity": manifest["identity"], "exit": exit_layer}
    with atomic_folder(output) as folder:
        save_model(folder, chosen)
        copy_tokenizer(run.path, folder, config.model.max_length)
        write_json(folder / FACTS_NAME, facts)
        write_json(folder / PARITY_NAME, parity)
    return parity


def find_checkpoint(run: RunDirectory, step: int | None) -> Path:
    """The checkpoint of `step`, or the latest one."""
    checkpoint = run.checkpoint(step) if step is not None else latest_checkpoint(run.checkpoints)
    if checkpoint is None or not checkpoint.is_dir():
        wanted = "complete checkpoint" if step is None else checkpoint_name(step)
        raise MoseError(f"{run.checkpoints}: holds no {wanted}; expected one written by `mose-pretrain train`")
    return checkpoint


def merge_slices(checkpoint: Path, scratch: Path) -> Callable[[str], Tensor]:
    """Merge ZeRO partitions and tensor slices by DeepSpeed's universal conversion; returns a reader of whole fp32 tensors."""
    target = scratch / "universal"
    words = ["--input_folder", str(checkpoint / STATE_TAG), "--output_folder", str(target)]
    workers = ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *words, *workers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise MoseError(f"{checkpoint}: DeepSpeed could not merge its parts: {reason}")

    def read(name: str) -> Tensor:
        path = target / "zero" / name / "fp32.pt"
        if not path.is_file():
            raise MoseError(f"{checkpoint}: holds no parameter {name}")
        value = torch.load(path, map_location="cpu", weights_only=True)
        tensor: Tensor = value["param"] if isinstance(value, dict) else value
        return tensor

    return read


@torch.no_grad()
def build_exported(config: PretrainConfig, read: Callable[[str], Tensor]) -> ModularStarEncoder:
    """The plain model with the checkpoint's weights; padding rows of the vocabulary are cut off."""
    with torch.device("meta"):
        model = ModularStarEncoder(ModularStarEncoderConfig(**config.model.hugging_face()))
    model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        tensor = read(name)
        if sharding_of(name) is Sharding.VOCABULARY:
            # ZeRO 3 stores a parameter flat: its rows are found again from the shape of one.
            tensor = tensor.reshape(config.model.padded_vocabulary_size, *parameter.shape[1:])[: config.model.vocabulary_size]
        elif tensor.numel() == parameter.numel():
            tensor = tensor.reshape(parameter.shape)
        if tensor.shape != parameter.shape:
            raise MoseError(f"checkpoint: {name} is {list(tensor.shape)}, the run's config makes it {list(parameter.shape)}")
        parameter.copy_(tensor)
    return model.eval()  # type: ignore[no-any-return]


@torch.no_grad()
def parity_report(model: ModularStarEncoder, checkpoint: Path, config: PretrainConfig) -> dict[str, Any]:
    """Largest difference at each exit to the states [N, D] that the live model gave when it was saved.

    Raises:
        MoseError: in fp32, an exit differs by more than 5e-6 of its largest value.
    """
    path = checkpoint / "probe.safetensors"
    if not path.is_file():
        raise MoseError(f"{path}: no such file; expected the live model's states, written with each checkpoint")
    probe = load_file(path)
    inputs = (probe["input_ids_N"], probe["positions_N"], probe["cu_seqlens"])
    states = model.starEncoder2(*inputs, int(torch.diff(probe["cu_seqlens"]).max()))
    exits = {}
    for layer, state_ND in zip(config.model.exit_layers, states, strict=True):
        live_ND = probe[f"exit_{layer:02d}"].float()
        difference, largest = float((state_ND - live_ND).abs().max()), float(live_ND.abs().max())
        exits[f"{layer:02d}"] = {"largest_difference": difference, "largest_value": largest, "relative": difference / largest}
    worst = max(values["relative"] for values in exits.values())
    if config.parallel.precision == "fp32" and not worst <= FP32_TOLERANCE:
        raise MoseError(
            f"{checkpoint}: exported model differs by {worst:.1e} of the largest value, at most {FP32_TOLERANCE} expected"
        )
    return {
        "precision_of_training": config.parallel.precision,
        "tolerance_in_fp32": FP32_TOLERANCE,
        "worst": worst,
        "exits": exits,
    }
