"""The device's kernels against float32 on the CPU: attention back ends, exits and loss, the fused optimiser.

Letters: N real tokens, H query heads, G key-value heads, K head width, E exits.
"""

import copy
import importlib
import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu_parts.rows import drawn_batches
from benchmarks.gpu_parts.single_device import counts_of, encoder_of
from mose.model.attention_mose import FLASH_ATTENTION, SDPA, TORCH_FLASH, TORCH_VARLEN, attention
from mose.model.model_config import ModelConfig
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.terms.vocabulary import whole_vocabulary
from pretrain.model.training_model import TrainingModel

# Eight bits of mantissa, and sums of a few hundred terms rounded at each layer.
BF16_BAR = 3e-2
FP32_BAR = 1e-4
FUSED_BAR = 1e-5


@dataclass(frozen=True)
class Check:
    """One comparison: the largest difference over the reference's largest value, and what it may be."""

    name: str
    difference: float
    bar: float

    @property
    def passed(self) -> bool:
        """Whether it is within the bar; not a number is not."""
        return self.difference <= self.bar


def backends_of(device: torch.device) -> list[str]:
    """Attention back ends that can run here."""
    if device.type != "cuda":
        return [SDPA]
    flash = [FLASH_ATTENTION] if _imports("flash_attn") else []
    varlen = [TORCH_VARLEN] if importlib.util.find_spec("torch.nn.attention.varlen") is not None else []
    return [*flash, *varlen, TORCH_FLASH, SDPA]


def _imports(package: str) -> bool:
    """Whether a package is there and fits this torch: one built for another is found, but fails at its import."""
    try:
        importlib.import_module(package)
    except Exception:
        return False
    return True


def check_attention(device: torch.device) -> list[Check]:
    """Output and gradients of each back end, rows of very different lengths, the 1B model's heads."""
    lengths, heads, groups, width = (3, 300, 64, 1, 511), 16, 4, 64
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    bar = BF16_BAR if device.type == "cuda" else FP32_BAR
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(sum(lengths), n, width, generator=random).to(dtype) for n in (heads, groups, groups)]
    wanted = _attention_and_gradients([part.float() for part in inputs], bounds, max(lengths), SDPA)
    checks = []
    for backend in backends_of(device):
        found = _attention_and_gradients([part.to(device) for part in inputs], bounds.to(device), max(lengths), backend)
        names = ("output", "gradient of q", "gradient of k", "gradient of v")
        checks += [
            Check(f"attention {backend}: {n}", difference(a, b), bar) for n, a, b in zip(names, found, wanted, strict=True)
        ]
    return checks


def _attention_and_gradients(inputs: list[Tensor], bounds: Tensor, longest: int, backend: str) -> list[Tensor]:
    leaves = [part.detach().clone().requires_grad_() for part in inputs]
    out_NHK = attention(leaves[0], leaves[1], leaves[2], bounds, longest, 0.0, backend)
    # A weight an element, so that the gradient of the values is not the same for every row.
    (
        out_NHK * torch.linspace(-1, 1, out_NHK.numel(), device=out_NHK.device, dtype=out_NHK.dtype).view_as(out_NHK)
    ).sum().backward()  # type: ignore[no-untyped-call]
    return [out_NHK.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def check_model(device: torch.device) -> list[Check]:
    """Every exit's state and the loss of a small model, on the device in float32 and in bf16."""
    model = ModelConfig(
        vocabulary_size=4096,
        width=256,
        feed_forward_width=1024,
        num_layers=6,
        num_heads=4,
        num_key_value_heads=2,
        exit_layers=(2, 4, 6),
    )
    (batch,) = drawn_batches("faithful", 4, 1, 512, model.vocabulary_size)
    encoder = encoder_of(model, torch.device("cpu"), torch.float32).eval()
    wanted, wanted_loss = _states_and_loss(TrainingModel(encoder, whole_vocabulary(model.vocabulary_size)), batch)
    checks = []
    for dtype, bar in ((torch.float32, FP32_BAR), (torch.bfloat16, BF16_BAR)):
        moved = TrainingModel(copy.deepcopy(encoder).to(device, dtype), whole_vocabulary(model.vocabulary_size)).eval()
        found, loss = _states_and_loss(moved, batch.to(device))
        name = str(dtype).removeprefix("torch.")
        checks += [
            Check(f"exit {e} in {name}", difference(a, b), bar) for e, a, b in zip(model.exit_layers, found, wanted, strict=True)
        ]
        checks.append(Check(f"loss in {name}", abs(loss - wanted_loss) / wanted_loss, bar))
    return checks


@torch.no_grad()
def _states_and_loss(model: TrainingModel, batch: MicroBatch) -> tuple[list[Tensor], float]:
    denominators, _ = counts_of(batch)
    share, _ = model(batch, denominators)
    return model(batch, None), float(share)


def check_optimizer(device: torch.device) -> list[Check]:
    """Five steps of AdamW as a run uses it on this device (fused on CUDA) against the plain one on the CPU."""
    random = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(257, 33, generator=random), torch.randn(5, 257, 33, generator=random)
    found = _adamw(start.to(device), gradients.to(device), fused=device.type == "cuda")
    return [Check("AdamW after 5 steps", difference(found, _adamw(start, gradients, fused=False)), FUSED_BAR)]


def _adamw(start: Tensor, gradients: Tensor, fused: bool) -> Tensor:
    weight = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([weight], lr=1e-2, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1, fused=fused)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value that is wanted."""
    return float((found.detach().float().cpu() - wanted.float().cpu()).abs().max() / wanted.float().abs().max())
