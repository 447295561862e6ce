"""What a run computes with: number type, attention back end, packages and devices; decided before any work and logged once."""

import importlib.metadata

import torch

from mose.errors import MoseError
from mose.model.attention_mose import TORCH_VARLEN, choose_backend
from pretrain.config.run import PretrainConfig
from pretrain.parallel.context import ParallelContext

_NAMED_PACKAGES = ("torch", "deepspeed", "megatron-core", "flash-attn")


def dtype_of(config: PretrainConfig) -> torch.dtype:
    """The number type of weights and activations."""
    return torch.bfloat16 if config.parallel.precision == "bf16" else torch.float32


def attention_backend(config: PretrainConfig, device: torch.device) -> str:
    """The attention back end of this run.

    Raises:
        MoseError: MOSE_ATTENTION_BACKEND names none that is installed, or the config asks for dropout and the back end has none.
    """
    try:
        backend = choose_backend(device, dtype_of(config), config.model.attention_dropout)
    except ValueError as error:
        raise MoseError(str(error)) from None
    dropout = config.model.attention_dropout
    if dropout and backend == TORCH_VARLEN:
        way_out = "expected 0, or MOSE_ATTENTION_BACKEND=auto"
        raise MoseError(f"model.attention_dropout: {dropout}, which torch's varlen attention does not have; {way_out}")
    return str(backend)


def machine_line(backend: str, context: ParallelContext) -> str:
    """One line for the log, e.g. `attention flash_attention, 512 x NVIDIA H100 80GB HBM3, 1 thread per rank, torch 2.13.0`."""
    device = torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else "CPU"
    threads = torch.get_num_threads()
    words = [f"attention {backend}", f"{context.layout.world_size} x {device}"]
    words.append(f"{threads} thread{'s' if threads > 1 else ''} per rank")
    installed = {name: _version(name) for name in _NAMED_PACKAGES}
    return ", ".join([*words, *(f"{name} {version}" for name, version in installed.items() if version)])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
