"""A training step on one device in plain torch, without DeepSpeed: bf16 weights, float32 masters under (fused) AdamW.

Letters: N real tokens.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.model_config import ModelConfig
from mose.model.modeling_mose import ModularStarEncoder
from pretrain.config.run import OptimizerConfig
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.terms.term import Denominators
from pretrain.monitoring.throughput import GIB, step_flops
from pretrain.step import BatchCounts


class MasterAdamW:
    """AdamW on float32 copies of bf16 weights, clipped: what ZeRO 1 does on one rank, in the same number of bytes."""

    def __init__(self, parameters: list[nn.Parameter], fused: bool):
        defaults = OptimizerConfig()
        self._parameters, self._clipping = parameters, defaults.gradient_clipping
        self._masters = [parameter.detach().float().clone() for parameter in parameters]
        betas = (defaults.beta1, defaults.beta2)
        self._adamw = torch.optim.AdamW(
            self._masters, lr=1e-4, betas=betas, eps=defaults.epsilon, weight_decay=defaults.weight_decay, fused=fused
        )

    def step(self) -> None:
        """Clip, update the masters, round them into the weights, drop the gradients."""
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self._masters, self._clipping)
        self._adamw.step()
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._masters)
        self._adamw.zero_grad()


@dataclass(frozen=True)
class Speed:
    """Median over the timed steps."""

    seconds: float
    tokens_per_second: float
    model_flops_utilization: float | None
    peak_gib: float | None
    loss: float


def encoder_of(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> ModularStarEncoder:
    """The model with seeded weights; its attention has no dropout, which torch's varlen kernel lacks."""
    torch.manual_seed(0)
    shape = ModularStarEncoderConfig(**{**model.hugging_face(), "attention_dropout": 0.0})
    with torch.device(device):
        return ModularStarEncoder(shape).to(dtype)


def time_steps(
    module: nn.Module,
    loss_of: Callable[[MicroBatch], Tensor],
    batches: list[MicroBatch],
    shape: ModularStarEncoderConfig,
    peak: float | None,
) -> Speed:
    """Train on each batch once; the first two steps (memory is laid out, kernels are chosen) are not timed."""
    device = next(module.parameters()).device
    module.train()
    optimizer = MasterAdamW(list(module.parameters()), fused=device.type == "cuda")
    on_device = [batch.to(device) for batch in batches]
    _reset_peak(device)
    seconds, losses = [], []
    for batch in on_device:
        wait_for(device)
        began = time.perf_counter()
        loss = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        wait_for(device)
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
    timed = list(zip(batches, seconds, strict=True))[2:]
    rates = [batch.num_tokens / passed for batch, passed in timed]
    shares = [step_flops(shape, *counts_of(batch)) / passed / peak for batch, passed in timed if peak is not None]
    return Speed(
        statistics.median(seconds[2:]),
        statistics.median(rates),
        statistics.median(shares) if shares else None,
        _peak_gib(device),
        losses[0],
    )


def counts_of(batch: MicroBatch) -> tuple[Denominators, BatchCounts]:
    """A micro-batch's counts as if it were the whole global batch."""
    counts = BatchCounts(batch.num_tokens, batch.num_tokens + batch.padded_slots, batch.squared_lengths)
    return Denominators(batch.num_masked, batch.num_rows), counts


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
