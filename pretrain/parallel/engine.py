"""DeepSpeed: the process group, and the engine that owns gradients, ZeRO and the optimiser; the only file importing it."""

import argparse
import contextlib
import datetime
import io
import logging
import math
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn

from mose.errors import MoseError
from pretrain.config.run import OptimizerConfig, PretrainConfig
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.zero import STATE_TAG, deepspeed_config


def join_process_group(timeout_seconds: int) -> None:
    """Join the group that the launcher's variables describe: NCCL with CUDA, gloo without."""
    deepspeed_logger.setLevel(logging.WARNING)
    # A CPU-only op that nothing here calls; building it takes minutes and a killed build blocks every later run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, timeout=datetime.timedelta(seconds=timeout_seconds), verbose=False)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Two groups: parameters that decay, and biases and LayerNorm weights, which by default do not."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in model.parameters():
        matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
        (decayed if matrix or config.decay_biases_and_norms else exempt).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Engine:
    """A thin face of DeepSpeed's engine: exactly what `step.py` and `checkpoint.py` use."""

    def __init__(self, model: nn.Module, config: PretrainConfig, context: ParallelContext, merged: bool = False):
        """Hand `model` (this rank's slice) to DeepSpeed with torch's AdamW; fused on CUDA.

        With `merged`, `load` expects a state that `merge_parts` wrote.
        """
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config.optimizer),
            lr=config.schedule.peak_learning_rate,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            eps=config.optimizer.epsilon,
            fused=context.device.type == "cuda",
        )
        settings = deepspeed_config(config, context.layout)
        if merged:
            settings["checkpoint"] = {"load_universal": True}
        self.deepspeed, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, mpu=context.mpu)
        self._data_ranks = context.layout.data_ranks

    def __call__(self, batch: Any, denominators: Any) -> Any:
        """Run the model's forward; see `TrainingModel.forward`."""
        return self.deepspeed(batch, denominators)

    def backward(self, share: Tensor, last: bool) -> None:
        """Accumulate the gradient of this micro-batch's share of the global loss; `last` says that `step` follows.

        Only we know which micro-batch is the last: at ZeRO 0 and 1 ranks may have different numbers of them, and meet in the
        backward pass of the last one, overlapped with it if `overlap_comm` is set. (DeepSpeed's switch for callers who know,
        `managed_gradient_accumulation: false`, refuses that overlap at stage 1.) From stage 2 on they meet in every one.

        DeepSpeed averages over data ranks, so the share is multiplied by their number; it must not divide by the number of
        micro-batches, since the share is already divided by global counts. The product makes a new tensor also for one
        rank: with the engine's own output, stage 0 would divide all the same (seen: norm .667 for 5.335).
        """
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(share * float(self._data_ranks), scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Clip and update, once after the last micro-batch. Returns the norm before clipping.

        Infinity where DeepSpeed skipped the update on all ranks, since a gradient was not finite on one of them. At stage 0
        it knows no norm and 0.0 is returned.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        self.deepspeed.step()
        if not self.deepspeed.was_step_applied():
            # ZeRO 3 would still tell the norm of the step before.
            return math.inf
        return float(self.deepspeed.get_global_grad_norm() or 0.0)

    def train(self, mode: bool = True) -> None:
        """Switch dropout on or off."""
        self.deepspeed.train(mode)

    @property
    def module(self) -> nn.Module:
        """The model that was handed in."""
        return self.deepspeed.module  # type: ignore[no-any-return]

    @property
    def skipped_steps(self) -> int:
        """Steps that DeepSpeed skipped since the start because a gradient was not finite."""
        return int(self.deepspeed.skipped_steps)

    def save(self, folder: Path) -> None:
        """Write this rank's part of the state below `folder`; every rank calls it."""
        self.deepspeed.save_checkpoint(str(folder), tag=STATE_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Read this rank's part of a state that `save` wrote in the same layout; the caller has checked its checksums.

        DeepSpeed also brings back the decay, betas and clipping of the run that saved, which would silently undo a change
        of the config: this run's own are put in their place.
        """
        optimizer = self.deepspeed.optimizer
        wanted = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        clipping = optimizer.clip_grad
        # It warns on every rank that no `mpu` was given, as is right without tensor parallelism.
        deepspeed_logger.setLevel(logging.ERROR)
        self.deepspeed.load_checkpoint(str(folder), tag=STATE_TAG)
        deepspeed_logger.setLevel(logging.WARNING)
        for group, values in zip(optimizer.param_groups, wanted, strict=True):
            group.update(values)
        optimizer.clip_grad = clipping


def merge_parts(checkpoint: Path, target: Path) -> None:
    """Merge the ranks' parts of a checkpoint into whole tensors by DeepSpeed's universal conversion, in this process.

    `target` then holds `zero/PARAMETER/fp32.pt`, `exp_avg.pt`, `exp_avg_sq.pt` and `step.pt`.

    Raises:
        MoseError: DeepSpeed could not.
    """
    from deepspeed.checkpoint import ds_to_universal

    workers = {"num_extract_workers": 1, "num_merge_workers": 1}
    flags = {"keep_temp_folder": False, "strict": True, "inject_missing_state": False}
    source = {"input_folder": str(checkpoint / STATE_TAG), "output_folder": str(target)}
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(argparse.Namespace(**source, **workers, **flags))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MoseError(f"{checkpoint}: DeepSpeed could not merge its parts: {reason}") from error
