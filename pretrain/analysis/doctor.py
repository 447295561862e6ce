"""What a GPU run needs of this machine, one finding per line with what to do; asks, and changes nothing."""

import importlib
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed as dist

from mose.errors import first_line
from mose.model.attention_mose import FLASH_ATTENTION, choose_backend

# Rank 0 holds two sockets of the ranks' store per rank; the data set's shards and the libraries' files come on top.
DESCRIPTORS = 4096
OLDEST_DRIVER_MESSAGE = "expected a driver for CUDA {wanted} or newer (nvidia-smi shows it)"
# Set by older job scripts, or against what launch.py chooses; the second value says what to do.
QUESTIONABLE = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "unset it: torch's default (3) ends a rank without the abort that can hang",
    "NCCL_ASYNC_ERROR_HANDLING": "unset it: the old name of TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "CUDA_LAUNCH_BLOCKING": "unset it but for debugging: every kernel then waits for the one before",
    "NCCL_DEBUG": "fine for a short run; INFO writes megabytes per rank",
}


@dataclass(frozen=True)
class Finding:
    """One thing that a GPU run needs; `advice` is empty where it is as it should be."""

    name: str
    value: str
    advice: str = ""


def examine() -> list[Finding]:
    """Every finding; a check that fails by itself is a finding, so that the others are still printed."""
    findings: list[Finding] = []
    checks: tuple[Callable[[], list[Finding]], ...] = (
        _devices,
        _ranks,
        _number_type,
        _nccl,
        _attention,
        _libraries,
        _limits,
        _environment,
    )
    for check in checks:
        try:
            findings += check()
        except Exception as error:
            name = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(name, "could not be asked", first_line(error)))
    return findings


def _devices() -> list[Finding]:
    if torch.version.cuda is None:
        return [Finding("torch", f"{torch.__version__}, built for the CPU", "for GPUs install a build for CUDA")]
    built = Finding("torch", f"{torch.__version__}, built for CUDA {torch.version.cuda}")
    if not torch.cuda.is_available():
        advice = OLDEST_DRIVER_MESSAGE.format(wanted=torch.version.cuda) + ", and devices that this process may see"
        return [built, Finding("devices", "none", advice)]
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    mixed = "a run is as slow as its slowest device" if len(set(names)) > 1 else ""
    return [built, Finding("devices", ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names))) or "none", mixed)]


def _ranks() -> list[Finding]:
    local, visible = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID")), torch.cuda.device_count()
    if local is None or not visible:
        return [Finding("local rank", "not launched" if local is None else local)]
    taken = int(local) % visible
    # A launcher may show each rank its own device, under number 0; sharing one by accident looks the same from inside.
    shared = f"it takes device {taken}: right only if the launcher shows each rank its own" if int(local) >= visible else ""
    return [Finding("local rank", f"{local}, {visible} devices visible", shared)]


def _number_type() -> list[Finding]:
    if not torch.cuda.is_available():
        return []
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    fits = torch.cuda.is_bf16_supported(including_emulation=False)
    return [Finding("bf16", f"compute capability {capability}", "" if fits else "expected 8.0 or newer: no bf16 in hardware")]


def _nccl() -> list[Finding]:
    if torch.version.cuda is None:
        return []
    if not dist.is_nccl_available():
        return [Finding("NCCL", "not in this torch", "several GPUs need a build with NCCL")]
    return [Finding("NCCL", ".".join(map(str, torch.cuda.nccl.version())))]  # type: ignore[no-untyped-call]


def _attention() -> list[Finding]:
    found = []
    try:
        version = getattr(importlib.import_module("flash_attn"), "__version__", "unknown version")
        found.append(Finding("flash-attn", version))
    except ModuleNotFoundError:
        found.append(Finding("flash-attn", "not installed; torch's own kernel is used, with dropout too"))
    except Exception as error:
        advice = 'build it for this torch: pip install --no-build-isolation -e ".[gpu]", or uninstall it'
        found.append(Finding("flash-attn", f"installed, does not import: {first_line(error)}", advice))
    backend = choose_backend(torch.device("cuda"), torch.bfloat16, dropout=0.1)
    broken = backend == FLASH_ATTENTION and bool(found[0].advice)
    return [*found, Finding("attention on GPUs", backend, "it does not import: see flash-attn" if broken else "")]


def _libraries() -> list[Finding]:
    # Which accelerator DeepSpeed takes is decided at its import.
    from pretrain.parallel.context import choose_accelerator

    choose_accelerator()
    found = []
    for name, package in (("DeepSpeed", "deepspeed"), ("megatron-core", "megatron.core")):
        try:
            found.append(Finding(name, str(getattr(importlib.import_module(package), "__version__", "installed"))))
        except Exception as error:
            found.append(Finding(name, "does not import", first_line(error)))
    return found


def _limits() -> list[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    few = not unlimited and hard < DESCRIPTORS
    advice = f"raise the hard limit to {DESCRIPTORS} (ulimit -Hn): sockets of all ranks on rank 0, shards on every rank"
    return [Finding("open files", "no limit" if unlimited else f"at most {hard}", advice if few else "")]


def _environment() -> list[Finding]:
    return [Finding(name, os.environ[name], advice) for name, advice in QUESTIONABLE.items() if name in os.environ]
