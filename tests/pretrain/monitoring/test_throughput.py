"""Covers model operations of a step against torch's own counter, and the scalars of an interval."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mose.model import attention_mose
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.cost.devices import DEVICE_PEAKS, peak_of
from mose.model.modeling_mose import ModularStarEncoder
from mose.model.size import head_flops
from mose.tokenizer import Tokenizer
from pretrain.data.loader import BatchPlan, GlobalBatchLoader
from pretrain.model.terms.term import Denominators
from pretrain.model.terms.vocabulary import whole_vocabulary
from pretrain.model.training_model import TrainingModel
from pretrain.monitoring.throughput import Stopwatch, device_peak, step_flops
from pretrain.step import BatchCounts, StepResult
from pretrain.storage.local_rows import LocalRows
from tests.pretrain.cells import tiny_config


def test_operations_of_a_step_follow_torchs_counter(dataset: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_mose, "PADDED_BELOW", 0)  # else the counter sees the padding of short rows, too
    shape = ModularStarEncoderConfig(**tiny_config(dataset).model.hugging_face())
    model = TrainingModel(ModularStarEncoder(shape), whole_vocabulary(tokenizer.vocabulary_size))
    plan = BatchPlan(1, 8, 8, tokenizer.special, tokenizer.ordinary_ids())
    (batch,) = GlobalBatchLoader(LocalRows(dataset, "train"), plan).share(0)
    denominators = Denominators(batch.num_masked, batch.num_rows)
    squared = int(torch.diff(batch.cu_seqlens.long()).square().sum())
    ours = step_flops(shape, denominators, BatchCounts(batch.num_tokens, batch.num_tokens + batch.padded_slots, squared))
    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH):
        share, _ = model(batch, denominators)
    assert ours == 3 * forward.get_total_flops()
    with FlopCounterMode(display=False) as backward, sdpa_kernel(SDPBackend.MATH):
        share.backward()
    logits_made_again = head_flops(shape, batch.num_masked, 0)
    assert backward.get_total_flops() == ours * 2 // 3 + logits_made_again


def test_scalars_of_an_interval(dataset: Path) -> None:
    shape = ModularStarEncoderConfig(**tiny_config(dataset).model.hugging_face())
    stopwatch = Stopwatch(shape, torch.device("cpu"), world_size=2)
    result = StepResult(1.0, torch.zeros(3, 4, dtype=torch.float64), Denominators(10, 8), 0.5, BatchCounts(300, 400, 9000))
    stopwatch.add(result, wait_seconds=0.0)
    values = stopwatch.read(result)
    assert values["data/padding_fraction"] == pytest.approx(0.25)
    assert values["throughput/data_wait_fraction"] == 0.0
    assert values["throughput/tokens_per_second_per_device"] > 0
    assert 0.01 < values["memory/peak_gib"] < 64
    assert "throughput/model_flops_utilization" not in values
    assert device_peak(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A40", 149.7e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla V100-SXM2-32GB", None),
    ],
)
def test_peaks_by_the_names_that_drivers_give(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_peaks_are_dense_ones() -> None:
    assert all(50e12 < peak <= 2500e12 for peak in DEVICE_PEAKS.values())
