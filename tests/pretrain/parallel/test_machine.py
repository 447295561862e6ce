"""Covers what a run computes with: the attention back end refused before any work where it cannot, and the line at the start."""

import dataclasses
from pathlib import Path

import pytest
import torch

from mose.errors import MoseError
from mose.model.attention_mose import BACKEND_VARIABLE, SDPA, TORCH_VARLEN
from pretrain.config.run import Layout, PretrainConfig
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.machine import attention_backend, machine_line
from tests.pretrain.cells import tiny_config

GPU = torch.device("cuda")


@pytest.fixture
def config(dataset: Path) -> PretrainConfig:
    config = tiny_config(dataset, precision="bf16")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, attention_dropout=0.1))


def test_dropout_is_refused_where_the_kernel_has_none(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, TORCH_VARLEN)
    with pytest.raises(MoseError, match=r"model\.attention_dropout: 0\.1, which torch's varlen attention does not have"):
        attention_backend(config, GPU)
    assert attention_backend(config, torch.device("cpu")) == SDPA
    monkeypatch.setenv(BACKEND_VARIABLE, SDPA)
    assert attention_backend(config, GPU) == SDPA


def test_an_unknown_back_end_is_refused(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "fast")
    with pytest.raises(MoseError, match="MOSE_ATTENTION_BACKEND: 'fast'"):
        attention_backend(config, GPU)


def test_the_line_at_the_start(config: PretrainConfig) -> None:
    layout = Layout.of(config, 2)
    line = machine_line(SDPA, ParallelContext(0, 0, 0, layout, torch.device("cpu"), None, None))
    assert line.startswith("attention sdpa, 2 x CPU, ")
    assert f"torch {torch.__version__}" in line
