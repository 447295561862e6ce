"""Covers the lines of `mose-pretrain doctor` on a machine without GPUs, and on stubs of machines where something is wrong."""

import importlib
import resource
from typing import Any

import pytest
import torch

from pretrain.analysis import doctor
from pretrain.analysis.doctor import Finding, examine


def by_name() -> dict[str, Finding]:
    return {finding.name: finding for finding in examine()}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Four devices of a build for CUDA, as far as the checks ask."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA A100" if number else "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    # The libraries have their own tests, and would ask the stubs more than they know.
    monkeypatch.setattr(doctor, "_libraries", list)
    monkeypatch.setattr(doctor, "_nccl", list)
    return monkeypatch


def test_a_machine_without_gpus_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    found = by_name()
    if torch.version.cuda is None:
        assert found["torch"].advice == "for GPUs install a build for CUDA"
    assert found["local rank"].value == "not launched"
    assert {"DeepSpeed", "megatron-core", "open files", "flash-attn"} <= found.keys()


def test_mixed_devices_old_ones_and_a_rank_beyond_them(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("LOCAL_RANK", "5")
    found = by_name()
    assert found["devices"] == Finding("devices", "3 x NVIDIA A100, 1 x NVIDIA H100", "a run is as slow as its slowest device")
    assert found["bf16"].advice == "expected 8.0 or newer: no bf16 in hardware"
    assert found["local rank"].advice == "it takes device 1: right only if the launcher shows each rank its own"


def test_a_flash_attn_of_another_torch_is_named(gpus: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == "flash_attn":
            raise ImportError("undefined symbol: _ZN3c104cuda9SetDeviceEab\nmore")
        return original(name, package)

    gpus.setattr(importlib, "import_module", broken)
    found = by_name()["flash-attn"]
    assert found.value == "installed, does not import: undefined symbol: _ZN3c104cuda9SetDeviceEab"
    assert "--no-build-isolation" in found.advice


def test_few_descriptors_and_a_harmful_variable(gpus: pytest.MonkeyPatch) -> None:
    gpus.setattr(resource, "getrlimit", lambda kind: (1024, 1024))
    gpus.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    found = by_name()
    assert found["open files"].advice.startswith("raise the hard limit to 4096")
    assert found["TORCH_NCCL_ASYNC_ERROR_HANDLING"].advice.startswith("unset it")


def test_a_check_that_fails_is_a_finding_and_hides_no_other(gpus: pytest.MonkeyPatch) -> None:
    def fails() -> list[Finding]:
        raise RuntimeError("driver too old\nmore")

    gpus.setattr(doctor, "_devices", fails)
    found = examine()
    assert found[0] == Finding("fails", "could not be asked", "driver too old")
    assert len(found) > 3
