"""Seconds of one training step on many GPUs, from devices, fabric and the way of communicating; every assumption is a field."""

import math
from dataclasses import dataclass, field

from mose.model.cost.devices import DEVICE_PEAKS
from mose.model.cost.shape import EncoderShape
from mose.model.model_config import ModelConfig
from mose.model.size import encoder_parameters, head_parameters, training_flops

GLOBAL_ROWS = 2048


@dataclass(frozen=True)
class Device:
    """One GPU."""

    name: str
    peak: float
    """bf16 FLOP/s, the data sheet's."""
    utilization: float
    """Share of it that a step on one GPU alone reaches. Assumed."""
    memory_bytes_per_second: float
    """At which masters and moments are read and written: three quarters of the data sheet's. Assumed."""


A100 = Device("A100 64 GB", DEVICE_PEAKS["A100"], 0.5, 1.2e12)
H100 = Device("H100 80 GB", DEVICE_PEAKS["H100"], 0.4, 2.5e12)


@dataclass(frozen=True)
class Fabric:
    """The network of a cluster. A ring of NCCL enters and leaves each node through all of its cards at once."""

    node_gpus: int
    cards: int
    card_gigabits: float
    nvlink_bytes_per_second: float = 200e9
    """Bus bandwidth of a collective inside a node: two thirds of NVLink 3's 300e9 each way. Assumed."""
    efficiency: float = 0.8
    """Share of the cards' bit rate that reaches the tensors. Assumed: nccl#412 shows 24 of 25 GB/s with one card, #495 75 of 100
    with eight."""
    network_latency: float = 10e-6
    """Seconds per step of an algorithm between two nodes. Assumed."""
    nvlink_latency: float = 3e-6
    """Seconds per step between two GPUs of a node. Assumed."""

    @property
    def name(self) -> str:
        """E.g. `4 GPUs, 4 x 100 Gb/s`."""
        return f"{self.node_gpus} GPUs, {self.cards} x {self.card_gigabits:g} Gb/s"

    def bus(self, gpus: int) -> float:
        """Bus bandwidth in bytes per second of a ring over `gpus` neighbouring GPUs."""
        if gpus <= self.node_gpus:
            return self.nvlink_bytes_per_second
        return min(self.nvlink_bytes_per_second, self.cards * self.card_gigabits * 1e9 / 8 * self.efficiency)

    def latency(self, gpus: int) -> float:
        """Seconds of a collective over `gpus` GPUs that carries no bytes: up and down a tree over nodes, a chain inside them."""
        nodes = math.ceil(gpus / self.node_gpus)
        return 2 * math.ceil(math.log2(nodes)) * self.network_latency + min(gpus, self.node_gpus) * self.nvlink_latency


PAPERS_FABRIC = Fabric(node_gpus=4, cards=4, card_gigabits=100)


@dataclass(frozen=True)
class Communication:
    """How gradients are reduced and weights gathered."""

    name: str
    gradient_bytes: int
    """Bytes of one gradient value on the wire."""
    in_node: bool = False
    """Whether optimiser states are divided over the GPUs of a node (`parallel.zero_partition_ranks`), or over all."""
    stage: int = 1
    """ZeRO stage: 1, or 3 with prefetched layers."""


ZERO_1_FP32 = Communication("ZeRO 1 over all, fp32", 4)
ZERO_1_BF16 = Communication("ZeRO 1 over all, bf16", 2)
IN_NODE_FP32 = Communication("ZeRO 1 in nodes, fp32", 4, in_node=True)
IN_NODE_BF16 = Communication("ZeRO 1 in nodes, bf16", 2, in_node=True)
ZERO_3_FP32 = Communication("ZeRO 3, prefetch, fp32", 4, stage=3)
WAYS = (ZERO_1_FP32, ZERO_1_BF16, IN_NODE_FP32, IN_NODE_BF16, ZERO_3_FP32)


@dataclass(frozen=True)
class Run:
    """What a step computes, and on what."""

    device: Device = A100
    fabric: Fabric = PAPERS_FABRIC
    global_rows: int = GLOBAL_ROWS
    micro_batch_rows: int = 4
    tokens_a_row: float = 1998.7
    """Real tokens of a default row. Measured (benchmarks/gpu_parts/row_lengths.json)."""
    slowest_rank: float = 1.012
    """Work of the most loaded of 512 ranks over the mean. Measured in operations (benchmarks/results/balance_2026-11-21.json)."""
    buckets: int = 22
    """Buckets of 50 million gradients, as configs/mose_1b_512gpu_tp1_zero1.yaml has them."""
    small_collectives: int = 6
    """Counts, losses and norms of a step."""
    layers: int = 36
    shape: EncoderShape = field(default_factory=lambda: EncoderShape.of(ModelConfig()))
    masking_share: float = 0.15

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return encoder_parameters(self.shape, self.shape.num_hidden_layers) + head_parameters(self.shape)

    def flops(self, rows: float) -> float:
        """Model operations of `rows` rows, all of the same length."""
        tokens = self.tokens_a_row
        masked = round(self.masking_share * tokens)
        return rows * training_flops(self.shape, round(tokens), round(tokens**2), masked, 1)


@dataclass(frozen=True)
class Step:
    """Seconds and bytes of one step on one GPU; the parts of `seconds` do not overlap."""

    compute: float
    gradient_bytes: float
    parameter_bytes: float
    reduction: float
    """Seconds of the reduction of gradients that the backward pass does not cover."""
    gather: float
    """Seconds of gathering weights that nothing covers."""
    optimizer: float
    small: float

    @property
    def exposed(self) -> float:
        """Seconds of communication that nothing covers."""
        return self.reduction + self.gather + self.small

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.exposed + self.optimizer


def step_on(gpus: int, run: Run, way: Communication) -> Step:
    """One step of all rows over `gpus` GPUs at TP 1.

    compute = operations x slowest rank / (peak x utilization), a third of it forward. Micro-batches before the last one add up
    locally at ZeRO 1.
    """
    rows = run.global_rows / gpus
    compute = run.flops(rows) * run.slowest_rank / (run.device.peak * run.device.utilization)
    micro_batches = max(1.0, rows / run.micro_batch_rows)
    backward = compute / micro_batches * 2 / 3
    passes = 1 if way.stage == 3 else 2
    gradients = passes * _ring(gpus) * run.parameters * way.gradient_bytes
    group = min(gpus, run.fabric.node_gpus) if way.in_node else gpus
    gathered = _ring(group) * run.parameters * 2
    small = run.small_collectives * run.fabric.latency(gpus)
    optimizer = run.parameters / group * 30 / run.device.memory_bytes_per_second
    if way.stage == 3:
        reduction, gather = _of_stage_3(gpus, run, gradients, gathered, backward)
        parts = reduction * micro_batches, gather * micro_batches
        return Step(compute, gradients * micro_batches, 2 * gathered * micro_batches, *parts, optimizer, small)
    reduction = uncovered(gradients, run.buckets, backward, run.fabric, gpus)
    gather = gathered / run.fabric.bus(group) + run.fabric.latency(group)
    return Step(compute, gradients, gathered, reduction, gather, optimizer, small)


def _ring(gpus: int) -> float:
    """Share of the bytes that a ring moves per pass."""
    return (gpus - 1) / gpus


def uncovered(num_bytes: float, buckets: int, backward: float, fabric: Fabric, gpus: int) -> float:
    """Seconds from the end of the backward pass to the last bucket's.

    Buckets fill evenly over the backward pass. A bucket's reduction begins when it is full and the one before is reduced, so the
    last one is never covered.
    """
    each, ended = num_bytes / buckets / fabric.bus(gpus) + fabric.latency(gpus), 0.0
    for number in range(1, buckets + 1):
        ended = max(ended, backward * number / buckets) + each
    return ended - backward


def _of_stage_3(gpus: int, run: Run, gradients: float, gathered: float, backward: float) -> tuple[float, float]:
    """Uncovered seconds per micro-batch of the reduction and of gathering layers for the forward and the backward pass.

    Layers are gathered under the layer before, so the first one of each pass is uncovered, and what takes longer than the pass.
    """
    bus, latency, layers = run.fabric.bus(gpus), run.fabric.latency(gpus), run.layers
    one_gather, one_reduction = gathered / layers / bus + latency, gradients / layers / bus + latency
    gather = one_gather + max(0.0, one_gather * (layers - 1) - backward / 2)
    both = one_gather + one_reduction
    return one_reduction + max(0.0, both * (layers - 1) - backward), gather + one_gather


def utilization(gpus: int, run: Run, way: Communication) -> float:
    """Share of all GPUs' peak that the whole step reaches."""
    return run.flops(run.global_rows) / (step_on(gpus, run, way).seconds * gpus * run.device.peak)
