"""Every sensible layout of a run on a cluster: memory of a device by part, seconds of a step, days, and which one to take."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mose.errors import MoseError
from mose.model.cost.memory import MemoryEstimate, MemoryLayout, device_memory, reduction_fields
from mose.model.cost.shape import EncoderShape
from mose.model.cost.step import A100, H100, Communication, Device, Fabric, Run, Step, step_on
from mose.model.model_config import ModelConfig

GIB = 1 << 30
DEVICES = {"A100": (A100, 64.0), "A100-80": (A100, 80.0), "H100": (H100, 80.0)}
# Fragmentation, NCCL's buffers and the CUDA context on top of the counted parts.
OVERHEAD_SHARE, OVERHEAD_GIB = 0.15, 2.0
# Forward work that is done again, as a share of a step's: all of it, or attention's intermediates and an activation. Assumed.
RECOMPUTED = {"none": 0.0, "selective": 0.02, "full": 1 / 3}


@dataclass(frozen=True)
class PlannedRun:
    """What of a run's config the plan needs."""

    shape: EncoderShape
    max_length: int
    padded_vocabulary: int
    global_rows: int
    max_steps: int
    number_bytes: int
    gradient_bytes: int
    masking_share: float
    checkpoint_every_steps: int
    reduction: dict[str, Any]
    """What the run's DeepSpeed options decide of memory."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> "PlannedRun":
        """From a resolved config.

        Raises:
            MoseError: the model is not valid; a vocabulary of 0 (the data set's) counts as the paper's.
        """
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values["model"].items()}
        model = ModelConfig(**fields)
        if not model.vocabulary_size:
            model = dataclasses.replace(model, vocabulary_size=ModelConfig().vocabulary_size)
        parallel = values["parallel"]
        return cls(
            EncoderShape.of(model),
            model.max_length,
            model.padded_vocabulary_size,
            values["batch"]["global_rows"],
            values["max_steps"],
            2 if parallel["precision"] == "bf16" else 4,
            2 if parallel["gradient_communication"] == "bf16" else 4,
            values["data"]["masking_share"],
            values["intervals"]["checkpoint_every_steps"],
            reduction_fields(values.get("deepspeed") or {}),
        )


@dataclass(frozen=True)
class Cluster:
    """The nodes that a plan is for."""

    nodes: int
    gpus_per_node: int
    device: Device
    memory_gib: float
    cards: int
    card_gigabits: float

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.nodes * self.gpus_per_node

    @property
    def fabric(self) -> Fabric:
        """Its network; NVLink of the device's generation."""
        nvlink = 300e9 if self.device.name.startswith("H100") else 200e9
        return Fabric(self.gpus_per_node, self.cards, self.card_gigabits, nvlink_bytes_per_second=nvlink)


@dataclass(frozen=True)
class Candidate:
    """One layout with its memory and its speed."""

    tensor_ranks: int
    zero: str
    """`1`, `1 in nodes`, `2` or `3`."""
    micro_batch_rows: int
    checkpointing: str
    memory: MemoryEstimate
    fits: bool
    step: Step
    seconds: float
    """Of a step, recomputation and the traffic of tensor parallelism included."""

    @property
    def needed_gib(self) -> float:
        """Memory of a device with what the parts leave out."""
        return self.memory.total / GIB * (1 + OVERHEAD_SHARE) + OVERHEAD_GIB

    @property
    def overlapped(self) -> float:
        """Share of the reduction's traffic time that computing covers; 1 where there is none."""
        return 1 - self.step.exposed / self.seconds if self.seconds else 1.0


def candidates(run: PlannedRun, cluster: Cluster) -> list[Candidate]:
    """Every layout that divides this cluster and this batch, the fastest that fits first, then those that do not fit."""
    found = [_candidate(run, cluster, *choice) for choice in _choices(run, cluster)]
    # Of equal times the fewest micro-batches: small ones keep a device less busy, which the arithmetic does not know.
    return sorted(found, key=lambda one: (not one.fits, round(one.seconds, 4), -one.micro_batch_rows, one.needed_gib))


def _choices(run: PlannedRun, cluster: Cluster) -> Iterator[tuple[int, str, int, str]]:
    for tensor in (1, 2, 4):
        heads = run.shape.num_key_value_heads % tensor == 0 and cluster.gpus_per_node % tensor == 0
        data = cluster.gpus // tensor
        if not heads or run.global_rows < data:
            continue
        stages = ("1", "1 in nodes", "2", "3") if tensor == 1 and cluster.nodes > 1 else ("1", "2", "3")
        most = math.ceil(run.global_rows / data)
        rows = sorted({rows for rows in (1, 2, 4, 8, 16) if rows <= most} | {min(most, 16)})
        for zero in stages:
            for number in rows:
                for checkpointing in RECOMPUTED:
                    yield tensor, zero, number, checkpointing


def _candidate(run: PlannedRun, cluster: Cluster, tensor: int, zero: str, rows: int, checkpointing: str) -> Candidate:
    data = cluster.gpus // tensor
    layout = MemoryLayout(
        tensor_ranks=tensor,
        data_ranks=data,
        zero_ranks=cluster.gpus_per_node if zero == "1 in nodes" else data,
        zero_stage=int(zero[0]),
        micro_batches=math.ceil(run.global_rows / data / rows),
        micro_batch_tokens=rows * run.max_length,
        padded_vocabulary_size=run.padded_vocabulary,
        number_bytes=run.number_bytes,
        masking_share=run.masking_share,
        activation_checkpointing=checkpointing,
        **run.reduction,
    )
    memory = device_memory(run.shape, layout)
    step, seconds = _speed(run, cluster, tensor, zero, rows, checkpointing)
    needed = memory.total / GIB * (1 + OVERHEAD_SHARE) + OVERHEAD_GIB
    return Candidate(tensor, zero, rows, checkpointing, memory, needed <= cluster.memory_gib, step, seconds)


def _speed(run: PlannedRun, cluster: Cluster, tensor: int, zero: str, rows: int, checkpointing: str) -> tuple[Step, float]:
    """The step of `mose.model.cost.step`, and its seconds with recomputation and the all-reduces of tensor parallelism.

    Ranks that share a layer split its work; the reduction then carries their share of the gradients over as many data ranks,
    which the ring of all GPUs stands for.
    """
    way = Communication(f"ZeRO {zero}", run.gradient_bytes, in_node=zero == "1 in nodes", stage=3 if zero == "3" else 1)
    tokens = run.max_length * 0.976  # of a full row, as measured (mose.model.cost.step.Run.tokens_a_row of 2,048 slots)
    planned = Run(
        device=cluster.device,
        fabric=cluster.fabric,
        global_rows=run.global_rows,
        micro_batch_rows=max(1, rows // tensor),
        tokens_a_row=tokens,
        layers=run.shape.num_hidden_layers,
        shape=run.shape,
        masking_share=run.masking_share,
    )
    step = step_on(cluster.gpus, planned, way)
    # Two all-reduces of a layer's output forward and two backward, in bf16, of all rows of a data rank.
    values = run.global_rows * tensor / cluster.gpus * tokens * run.shape.hidden_size
    traffic = 4 * run.shape.num_hidden_layers * values * 2 * 2 * (tensor - 1) / tensor / cluster.fabric.nvlink_bytes_per_second
    # From stage 2 on gradients are reduced in every micro-batch; `step_on` counts one reduction for all but stage 3.
    again = math.ceil(run.global_rows * tensor / cluster.gpus / rows) - 1 if zero == "2" else 0
    return step, step.seconds + step.compute * RECOMPUTED[checkpointing] + traffic + again * step.reduction


def chosen(found: list[Candidate]) -> Candidate:
    """The layout to take: the fastest that fits, of ZeRO 3 only where nothing else fits.

    A ZeRO 3 run resumes in the same layout only, and the overlap of its gathers is an assumption.

    Raises:
        MoseError: none fits; the message names the smallest.
    """
    if not found:
        raise MoseError("nodes: no layout divides these GPUs and batch.global_rows, expected at least one row per data rank")
    if not found[0].fits:
        least = min(found, key=lambda one: one.needed_gib)
        smallest = f"TP {least.tensor_ranks}, ZeRO {least.zero}, {least.micro_batch_rows} rows, recompute {least.checkpointing}"
        raise MoseError(f"device: no layout fits; the smallest ({smallest}) needs {least.needed_gib:.0f} GiB")
    return next((one for one in found if one.fits and one.zero != "3"), found[0])


def measured_device(device: Device, values: dict[str, Any], name: str) -> Device:
    """The device with the utilization that a result of benchmarks/gpu_suite.py saw at the paper's 4 rows.

    Raises:
        MoseError: it has none, as a rehearsal on the CPU.
    """
    try:
        share = float(values["micro_batches"]["4"]["model_flops_utilization"])
    except (KeyError, TypeError, ValueError):
        raise MoseError(
            f"{name}: micro_batches.4.model_flops_utilization: missing, expected a result of benchmarks/gpu_suite.py"
        ) from None
    return dataclasses.replace(device, utilization=share)
