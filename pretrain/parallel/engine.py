"""DeepSpeed: the process group, and the engine that owns gradients, ZeRO and the optimiser; the only file that imports it."""

import argparse
import contextlib
import datetime
import io
import logging
import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor, nn
from torch import distributed as dist
from torch._C._distributed_c10d import Store

from mose.errors import MoseError, first_line
from mose.model.sharding import Sharding, sharding_of
from pretrain.config.identity import is_aligned
from pretrain.config.run import OptimizerConfig, PretrainConfig
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.partition import reduce_over_all
from pretrain.parallel.weights_only import weights_only
from pretrain.parallel.zero import STATE_TAG, accumulates_in_fp32, deepspeed_config


def join_process_group(timeout_seconds: int, store: Store | None = None) -> None:
    """Join the group that the launcher's variables describe: NCCL with CUDA, gloo without.

    The ranks meet in `store`; without one torch opens its own, as the launcher's variables say. The process's CUDA device must
    be set: NCCL makes its communicators on the current one.
    """
    deepspeed_logger.setLevel(logging.WARNING)
    # No op counts as compatible. The only one that is looked up is CPU-only and not used here: its build takes minutes, and a
    # killed build leaves a lock that blocks later runs. Reading DeepSpeed's own table would start compilers on every rank.
    deepspeed.ops.__compatible_ops__ = {}
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    timeout = datetime.timedelta(seconds=timeout_seconds)
    if not dist.is_initialized():
        # deepspeed takes over a group that is there. Its own would be bound to a device (`device_id`), and torch then builds
        # every later group at once by splitting NCCL's communicator, in which all ranks must take part.
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        meeting: dict[str, Any] = {"store": store} if store is not None else {"init_method": "env://"}
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout, **meeting)
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)


def parameter_groups(model: nn.Module, config: OptimizerConfig, aligned: bool = False) -> list[dict[str, Any]]:
    """Parameters that decay; biases and LayerNorm weights, which by default do not; the vocabulary's, if their rate differs.

    Each group's `factor` is its learning rate as a multiple of the schedule's. With `aligned`, parameters that do not fill 16
    bytes in bf16 come last in their group. ZeRO 1 and 2 lay a group out one parameter after the other, and kernels need weights
    that begin at a multiple of 16 bytes to read them in the widest loads.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    vocabulary: list[nn.Parameter] = []
    factor = config.vocabulary_learning_rate_factor
    for name, parameter in model.named_parameters():
        matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
        kind = decayed if matrix or config.decay_biases_and_norms else exempt
        # A group of its own only where it is needed: runs from before this option have two.
        own_rate = factor != 1 and matrix and sharding_of(name) is Sharding.VOCABULARY
        (vocabulary if own_rate else kind).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay, "factor": 1.0},
        {"params": exempt, "weight_decay": 0.0, "factor": 1.0},
        # AdamW multiplies decay by the rate.
        {"params": vocabulary, "weight_decay": config.weight_decay / factor, "factor": factor},
    ]
    if aligned:
        for group in groups:
            # Stable, so that all others keep the order of the model.
            group["params"] = sorted(group["params"], key=lambda parameter: parameter.numel() % 8 != 0)
    return [group for group in groups if group["params"]]


class Engine:
    """A thin wrapper of DeepSpeed's engine: exactly what `step.py` and `checkpoints/store.py` use."""

    def __init__(self, model: nn.Module, config: PretrainConfig, context: ParallelContext, merged: bool = False):
        """Wrap `model` (this rank's slice) with DeepSpeed and torch's AdamW; fused on CUDA.

        With `merged`, `load` expects a state that `merge_parts` wrote.
        """
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config.optimizer, is_aligned(config.parallel.zero_stage)),
            lr=config.schedule.peak_learning_rate,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            eps=config.optimizer.epsilon,
            fused=context.device.type == "cuda",
        )
        settings = deepspeed_config(config, context.layout)
        if merged:
            settings["checkpoint"] = {"load_universal": True}
        if accumulates_in_fp32(config, context.layout):
            for parameter in model.parameters():
                parameter.grad_dtype = torch.float32
        self.deepspeed, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, mpu=context.mpu)
        self._zero_ranks = context.layout.zero_ranks
        if context.layout.partition_ranks:
            reduce_over_all(self.deepspeed.optimizer, context.data_group)
            if context.data_rank >= self._zero_ranks:
                # The ranks of the first group have written the same states.
                self.deepspeed.save_zero_checkpoint = self.deepspeed.save_non_zero_checkpoint = False

    def __call__(self, batch: Any, denominators: Any) -> Any:
        """Run the model's forward; see `TrainingModel.forward`."""
        return self.deepspeed(batch, denominators)

    def backward(self, share: Tensor, last: bool) -> None:
        """Accumulate the gradient of this micro-batch's share of the global loss; `last` says that `step` follows.

        DeepSpeed needs to know which micro-batch is the last one, and cannot find out: at ZeRO 0 and 1 ranks may have different
        numbers of them. There gradients are reduced in the backward pass of the last one, overlapped with it if `overlap_comm`
        is set (DeepSpeed's own option for this, `managed_gradient_accumulation: false`, forbids the overlap at stage 1). From
        stage 2 on they are reduced in every backward pass.

        DeepSpeed divides by the number of data ranks that it knows, those of a ZeRO partition, so the share is multiplied by
        it. It must not divide by the number of micro-batches, since the share is already divided by global counts. The
        product makes a new tensor even for one rank: on the engine's own output, stage 0 would divide all the same (measured:
        norm .667 instead of 5.335).
        """
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(share * float(self._zero_ranks), scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Clip gradients and update weights, once after the last micro-batch. Returns the gradient norm before clipping.

        Returns infinity where DeepSpeed skipped the update on all ranks because a gradient was not finite on one of them, and
        0.0 at stage 0, where DeepSpeed computes no norm.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        self.deepspeed.step()
        if not self.deepspeed.was_step_applied():
            # ZeRO 3 would still return the norm of the previous step.
            return math.inf
        return float(self.deepspeed.get_global_grad_norm() or 0.0)

    def train(self, mode: bool = True) -> None:
        """Switch to training (dropout on) or evaluation mode."""
        self.deepspeed.train(mode)

    @property
    def module(self) -> nn.Module:
        """The wrapped model."""
        return self.deepspeed.module  # type: ignore[no-any-return]

    @property
    def skipped_steps(self) -> int:
        """Steps that DeepSpeed skipped in this process because a gradient was not finite."""
        return int(self.deepspeed.skipped_steps)

    def save(self, folder: Path) -> list[Path]:
        """Write this rank's part of the state below `folder`; every rank calls it. Returns the files that this rank wrote."""
        written: list[Path] = []
        writer = self.deepspeed.checkpoint_engine
        write = writer.save

        def recorded(state_dict: Any, path: str) -> None:
            write(state_dict, path)
            written.append(Path(path))

        # DeepSpeed does not say which files are whose: it depends on the stage, on both ranks and on its version.
        writer.save = recorded
        try:
            self.deepspeed.save_checkpoint(str(folder), tag=STATE_TAG, save_latest=False)
        finally:
            del writer.save
        # Beside the states, DeepSpeed's rank 0 copies its scripts that merge them.
        scripts = sorted(path for path in folder.iterdir() if path.is_file()) if dist.get_rank() == 0 else []
        return [*written, *scripts]

    @contextlib.contextmanager
    def counted_back(self, skipped_steps: int) -> Iterator[None]:
        """Inside the block, DeepSpeed's own counters are as they were before the last `skipped_steps` steps, all of them skipped.

        A skipped step changes nothing else, so what `save` writes then is, bit by bit, the state before those steps.
        """
        samples = skipped_steps * self.deepspeed.train_batch_size()
        self.deepspeed.global_steps -= skipped_steps
        self.deepspeed.skipped_steps -= skipped_steps
        self.deepspeed.global_samples -= samples
        try:
            yield
        finally:
            self.deepspeed.global_steps += skipped_steps
            self.deepspeed.skipped_steps += skipped_steps
            self.deepspeed.global_samples += samples

    def load(self, folder: Path, unpickle: bool = False) -> None:
        """Read this rank's part of a state that `save` or `merge_parts` wrote; the caller has verified its checksums.

        With `unpickle`, objects of any class are made, which can run code: for checkpoints that the user trusts.
        DeepSpeed also restores the decay, betas and clipping of the run that saved, which would silently undo a change of the
        config; they are set back to this run's own.

        Raises:
            MoseError: the state holds something else than tensors and plain values.
        """
        optimizer = self.deepspeed.optimizer
        wanted = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        clipping = optimizer.clip_grad
        # Without tensor parallelism there is no `mpu`, of which DeepSpeed would warn on every rank.
        deepspeed_logger.setLevel(logging.ERROR)
        with _loading(folder, unpickle):
            self.deepspeed.load_checkpoint(str(folder), tag=STATE_TAG)
        deepspeed_logger.setLevel(logging.WARNING)
        for group, values in zip(optimizer.param_groups, wanted, strict=True):
            group.update(values)
        optimizer.clip_grad = clipping
        place_state(optimizer)


def place_state(optimizer: Any) -> None:
    """Move each state tensor of an optimiser, or of the one that ZeRO wraps, to the device of its parameter.

    DeepSpeed's universal loader leaves `step` on the CPU, where it read it, and fused AdamW refuses that beside weights on CUDA.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    for parameter, state in inner.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.device != parameter.device:
                state[name] = value.to(parameter.device)


def _stage_named(kind: Any, name: str) -> ZeroStageEnum:
    """Stands in for `getattr` in a checkpoint: returns members of one enumeration only."""
    if kind is not ZeroStageEnum or name not in ZeroStageEnum.__members__:
        raise pickle.UnpicklingError(f"getattr of {name!r}, expected a ZeRO stage")
    return ZeroStageEnum[name]


@contextlib.contextmanager
def _loading(folder: Path, unpickle: bool) -> Iterator[None]:
    with contextlib.nullcontext() if unpickle else weights_only((fragment_address, LossScaler, ZeroStageEnum, _stage_named)):
        try:
            yield
        except pickle.UnpicklingError as error:
            reason = " ".join(str(error).rpartition("WeightsUnpickler error: ")[2].split("\n\n")[0].split())
            raise MoseError(f"{folder}: {reason}; expected tensors and plain values as DeepSpeed saves them") from error


def merge_parts(checkpoint: Path, target: Path, unpickle: bool = False) -> None:
    """Merge the ranks' parts of a checkpoint into whole tensors by DeepSpeed's universal conversion, in this process.

    A ZeRO checkpoint holds each rank's slice of flattened parameters, which only a run of the same layout can load. The universal
    format holds whole parameters and optimiser states, from which each rank of any layout cuts its own slice when it loads.
    `target` then holds `zero/PARAMETER/fp32.pt`, `exp_avg.pt`, `exp_avg_sq.pt` and `step.pt`. `unpickle` is as in `Engine.load`.

    Raises:
        MoseError: DeepSpeed failed; the message is the first line of its own.
    """
    from deepspeed.checkpoint import ds_to_universal

    workers = {"num_extract_workers": 1, "num_merge_workers": 1}
    flags = {"keep_temp_folder": False, "strict": True, "inject_missing_state": False}
    source = {"input_folder": str(checkpoint / STATE_TAG), "output_folder": str(target)}
    silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    try:
        # One worker each keeps the conversion in this process, where weights-only loading is forced.
        with silent[0], silent[1], _loading(checkpoint, unpickle):
            ds_to_universal.main(argparse.Namespace(**source, **workers, **flags))
    except MoseError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise MoseError(f"{checkpoint}: DeepSpeed could not merge its parts: {reason}") from error
