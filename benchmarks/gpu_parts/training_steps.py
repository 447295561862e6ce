"""Training steps of one model on one device, by micro-batch, padding, exits, attention back end, compilation and head width.

Letters: M masked tokens, V vocabulary, W width of the vocabulary projection.
"""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.gpu_parts.correctness import backends_of
from benchmarks.gpu_parts.rows import drawn_batches
from benchmarks.gpu_parts.single_device import Speed, counts_of, encoder_of, time_steps, wait_for
from benchmarks.padded_reference import PaddedReference, padded_inputs
from mose.model import attention_mose
from mose.model.model_config import ModelConfig
from pretrain.config.run import CHECKPOINTING
from pretrain.data.masking import MASKED_SHARE
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.activation_checkpointing import apply_activation_checkpointing
from pretrain.model.compilation import compile_layers
from pretrain.model.terms.vocabulary import whole_vocabulary
from pretrain.model.training_model import TrainingModel

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)
HEAD_WIDTHS = (1024, 1028, 1032, 1088)
PRECISION = torch.bfloat16


@dataclass
class Sweep:
    """The model, the device and the micro-batch that later parts use: the paper's 4 rows, or fewer where they do not fit."""

    model: ModelConfig
    device: torch.device
    peak: float | None
    steps: int
    rows: int = 4
    keep: Callable[[dict[str, Any]], None] = lambda figures: None
    """Keeps the figures of a part so far."""

    def batches(self, mode: str, rows: int | None = None) -> list[MicroBatch]:
        """Micro-batches for one timing."""
        return drawn_batches(mode, rows or self.rows, self.steps, self.model.max_length, self.model.vocabulary_size)

    def run(
        self,
        mode: str,
        rows: int | None = None,
        model: ModelConfig | None = None,
        compiled: bool = False,
        checkpointing: str = "none",
    ) -> Speed:
        """Time our step."""
        self._give_memory_back()
        model = model or self.model
        encoder = encoder_of(model, self.device, PRECISION)
        if compiled:
            compile_layers(encoder.starEncoder2)
        apply_activation_checkpointing(encoder.starEncoder2, checkpointing)
        training = TrainingModel(encoder, whole_vocabulary(model.vocabulary_size))
        return time_steps(
            training, lambda batch: training(batch, counts_of(batch)[0])[0], self.batches(mode, rows), encoder.config, self.peak
        )

    def run_padded(self, mode: str) -> Speed:
        """Time transformers' padded trunk under the same heads on masked positions."""
        self._give_memory_back()
        reference = PaddedReference(encoder_of(self.model, self.device, PRECISION), full_logits=False).to(self.device, PRECISION)
        batches = self.batches(mode)
        # Padded and copied before the clock starts, as a loader does it beside the step before.
        prepared = iter(
            [
                {name: value.to(self.device) for name, value in padded_inputs(batch, self.model.max_length).items()}
                for batch in batches
            ]
        )

        def loss_of(_: MicroBatch) -> Tensor:
            return reference(**next(prepared))["loss"]  # type: ignore[no-any-return]

        shape = encoder_of(self.model, torch.device("meta"), PRECISION).config
        return time_steps(reference, loss_of, batches, shape, self.peak)

    def _give_memory_back(self) -> None:
        # What an earlier timing left in the allocator would count as this one's fragmentation.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def micro_batches(sweep: Sweep) -> dict[str, Any]:
    """Speed and memory by rows of a micro-batch, default rows, up to what the memory holds."""
    found: dict[str, Any] = {}
    for rows in MICRO_BATCHES if sweep.device.type == "cuda" else MICRO_BATCHES[:2]:
        try:
            found[str(rows)] = dataclasses.asdict(sweep.run("dense", rows))
        except torch.cuda.OutOfMemoryError:
            found[str(rows)] = "out of memory"
            break
        sweep.keep(found)
    sweep.rows = max(
        (int(rows) for rows, speed in found.items() if int(rows) <= sweep.rows and isinstance(speed, dict)), default=1
    )
    return found


def padding(sweep: Sweep) -> dict[str, Any]:
    """Padded step / unpadded step for both packings; the losses of the first step are of the same weights and rows."""
    found: dict[str, Any] = {}
    for mode in ("faithful", "dense"):
        ours, padded = sweep.run(mode), sweep.run_padded(mode)
        ratio = padded.seconds / ours.seconds
        found[mode] = {"padded_to_unpadded": ratio, "unpadded": dataclasses.asdict(ours), "padded": dataclasses.asdict(padded)}
        sweep.keep(found)
    return found


def exits(sweep: Sweep) -> dict[str, Any]:
    """Step with every exit / step with the deepest alone."""
    single = dataclasses.replace(sweep.model, exit_layers=sweep.model.exit_layers[-1:])
    every, one = sweep.run("dense"), sweep.run("dense", model=single)
    return {"every_to_one": every.seconds / one.seconds, "every": dataclasses.asdict(every), "one": dataclasses.asdict(one)}


def attention_backends(sweep: Sweep) -> dict[str, Any]:
    """The step under each attention back end that can run here."""
    found: dict[str, Any] = {}
    for backend in backends_of(sweep.device):
        with mock.patch.object(attention_mose, "choose_backend", return_value=backend):
            found[backend] = dataclasses.asdict(sweep.run("dense"))
        sweep.keep(found)
    return found


def activation_checkpointing(sweep: Sweep) -> dict[str, Any]:
    """Speed and memory of the step by what is computed again."""
    found: dict[str, Any] = {}
    for kind in CHECKPOINTING:
        found[kind] = dataclasses.asdict(sweep.run("dense", checkpointing=kind))
        sweep.keep(found)
    return found


def compiled_layers(sweep: Sweep) -> dict[str, Any]:
    """Step with each layer through torch.compile / step without; says so where the compiler fails."""
    try:
        compiled = sweep.run("dense", compiled=True)
    except Exception as error:
        return {"failed": (str(error) or type(error).__name__).splitlines()[0]}
    plain = sweep.run("dense")
    return {"compiled_to_plain": compiled.seconds / plain.seconds, "compiled": dataclasses.asdict(compiled)}


def head_widths(sweep: Sweep) -> dict[str, float]:
    """Seconds of the vocabulary projection, forward and backward, at the model's 1,028 columns and at rounder numbers."""
    masked = round(MASKED_SHARE * sweep.rows * sweep.model.max_length)
    found = {str(width): _projection_seconds(masked, width, sweep) for width in HEAD_WIDTHS}
    # As ZeRO laid it out behind the 20 numbers of the conditional embeddings, until those went last (docs/gpu.md, 7).
    return found | {"1028, 8 bytes off 16": _projection_seconds(masked, 1028, sweep, shift=4)}


def _projection_seconds(masked: int, width: int, sweep: Sweep, shift: int = 0) -> float:
    state_MW = torch.randn(masked, width, device=sweep.device, dtype=PRECISION, requires_grad=True)
    flat = torch.randn(shift + sweep.model.vocabulary_size * width, device=sweep.device, dtype=PRECISION)
    weight_VW = flat[shift:].view(sweep.model.vocabulary_size, width).requires_grad_()
    seconds = []
    for _ in range(sweep.steps + 2):
        wait_for(sweep.device)
        began = time.perf_counter()
        logits_MV = nn.functional.linear(state_MW, weight_VW)
        logits_MV.backward(torch.ones_like(logits_MV))  # type: ignore[no-untyped-call]
        wait_for(sweep.device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])
