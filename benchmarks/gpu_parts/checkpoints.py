"""One save, one resume in another layout and one export, with DeepSpeed on one device: what only a device can show of them.

After a resume in another layout, DeepSpeed leaves a part of the optimiser's state on the CPU, which fused AdamW refuses.
"""

import dataclasses
import gc
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import HashStore

from benchmarks.gpu_parts.rows import drawn_batches
from benchmarks.gpu_parts.single_device import wait_for
from benchmarks.gpu_parts.training_steps import Sweep
from mose.checkpoint.exit_selection import select_exit, write_weights
from mose.checkpoint.safetensors_file import WEIGHTS_NAME
from mose.model.modeling_mose import ModularStarEncoder
from mose.schedule import learning_rate
from pretrain.checkpoints.merged_weights import MergedWeights
from pretrain.checkpoints.run_state import Progress
from pretrain.checkpoints.store import CheckpointStore, ResumeRequest
from pretrain.config.identity import config_values
from pretrain.config.run import BatchConfig, Layout, ParallelConfig, PretrainConfig
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.launch import ALONE, build_context
from pretrain.parallel.zero import STATE_TAG
from pretrain.step import train_step

# Relative difference of a loss after the resume: the order of sums in float32, a rounded weight in bf16.
BARS = {"fp32": 1e-5, "bf16": 2e-2}
STEPS_AFTER = 2


def checkpoints(sweep: Sweep) -> dict[str, Any]:
    """Seconds and bytes of a save at ZeRO 1, a resume of it at ZeRO 2, and an export of the whole model.

    Raises:
        RuntimeError: the resumed run has other losses.
    """
    from pretrain.parallel.engine import join_process_group

    os.environ.update(ALONE)
    join_process_group(600, HashStore())
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        saved, resumed = config_of(sweep, zero_stage=1), config_of(sweep, zero_stage=2)
        losses, found["save"] = _save(saved, sweep, Path(scratch))
        sweep.keep(found)
        again, found["resume"] = _resume(resumed, sweep, Path(scratch))
        difference = max(abs(one - other) / abs(one) for one, other in zip(losses, again, strict=True))
        found["resume"]["loss_difference"] = difference
        sweep.keep(found)
        found["export"] = _export(saved, Path(scratch))
    bar = BARS[saved.parallel.precision]
    if not difference <= bar:
        sweep.keep(found)
        raise RuntimeError(f"losses after a resume at ZeRO 2 differ by {difference:.1e}, expected at most {bar:.0e}")
    return found


def config_of(sweep: Sweep, zero_stage: int) -> PretrainConfig:
    """The step of the suite as a run, without dropout, so that losses can be compared."""
    model = dataclasses.replace(sweep.model, attention_dropout=0.0, residual_dropout=0.0, embedding_dropout=0.0)
    precision = "bf16" if sweep.device.type == "cuda" else "fp32"
    batch, parallel = BatchConfig(sweep.rows, sweep.rows), ParallelConfig(zero_stage=zero_stage, precision=precision)
    return PretrainConfig(model=model, batch=batch, parallel=parallel).resolve(model.vocabulary_size)


def _store(config: PretrainConfig, sweep: Sweep, folder: Path) -> tuple[CheckpointStore, ParallelContext]:
    context = build_context(Layout.of(config, 1), sweep.device)
    return CheckpointStore(folder / "checkpoints", context, config_values(config, "drawn rows", 1)), context


def _train(engine: Any, config: PretrainConfig, context: ParallelContext, steps: range) -> list[float]:
    batches = drawn_batches("dense", config.batch.global_rows, steps.stop, config.model.max_length, config.model.vocabulary_size)
    return [train_step(engine, [batches[step]], learning_rate(step, config.schedule), 0, step, context).loss for step in steps]


def _save(config: PretrainConfig, sweep: Sweep, folder: Path) -> tuple[list[float], dict[str, float]]:
    from pretrain.train import build_engine

    store, context = _store(config, sweep, folder)
    engine = build_engine(config, context)
    _train(engine, config, context, range(1))
    wait_for(sweep.device)
    saved = store.save(engine, Progress(1, config.batch.global_rows, 0))
    return _train(engine, config, context, range(1, 1 + STEPS_AFTER)), {"seconds": saved.seconds, "bytes": saved.num_bytes}


def _resume(config: PretrainConfig, sweep: Sweep, folder: Path) -> tuple[list[float], dict[str, float]]:
    from pretrain.train import build_engine

    # The engine that saved: DeepSpeed's objects refer to each other in cycles.
    gc.collect()
    if sweep.device.type == "cuda":
        torch.cuda.empty_cache()
    began = time.perf_counter()
    store, context = _store(config, sweep, folder)
    selection = store.select(ResumeRequest())
    if selection is None or not selection.converts:
        raise RuntimeError("the checkpoint of another layout was not found, or not converted")
    engine = build_engine(config, context, selection)
    progress = store.load(engine, selection)
    wait_for(sweep.device)
    seconds = time.perf_counter() - began
    return _train(engine, config, context, range(progress.step, progress.step + STEPS_AFTER)), {"seconds": seconds}


def _export(config: PretrainConfig, folder: Path) -> dict[str, float]:
    """The weights of the whole model as one float32 file."""
    from mose.model.configuration_mose import ModularStarEncoderConfig

    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    began, weights = time.perf_counter(), MergedWeights(checkpoint / STATE_TAG)
    shape = ModularStarEncoderConfig(**config.model.hugging_face())
    rows = config.model.vocabulary_size

    def read(name: str) -> torch.Tensor:
        tensor = weights.read(name)
        return tensor[:rows] if tensor.shape[0] == config.model.padded_vocabulary_size else tensor

    write_weights([(folder / WEIGHTS_NAME, select_exit(ModularStarEncoder, shape, None))], read, torch.float32)
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {"seconds": time.perf_counter() - began, "bytes": num_bytes}
