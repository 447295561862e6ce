"""What one device's step implies for the paper's run: time per step, traffic, share of the peak and days by number of GPUs.

Arithmetic, no measurement of a cluster; every assumption is a field of `Cluster` or `Communication`. The step of one device
comes from a result of benchmarks/gpu_suite.py where there is one, else from an assumed share of the peak.

python -m benchmarks.scaling [--measured benchmarks/results/gpu_suite_DATE.json] [--markdown docs/performance.md]
    [--plot docs/images/scaling.svg]
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mose.files.atomic_file import write_text
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.model_config import ModelConfig
from mose.model.size import encoder_parameters, head_parameters
from pretrain.data.masking import MASKED_SHARE
from pretrain.model.terms.term import Denominators
from pretrain.monitoring.throughput import DEVICE_PEAKS, step_flops
from pretrain.step import BatchCounts

GLOBAL_ROWS = 2048
STEPS = 245_000
GPUS = (8, 16, 32, 64, 128, 256, 512)
BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"


@dataclass(frozen=True)
class Cluster:
    """Assumptions about the machines."""

    peak: float = DEVICE_PEAKS["A100"]
    """bf16 FLOP/s of a GPU: an A100's data sheet."""
    utilization: float = 0.5
    """Share of it that one GPU's step reaches alone: what peers of this size report (TinyLlama 56 %, ESM-2 3B 62 %)."""
    node_gpus: int = 8
    node_bytes_per_second: float = 200e9
    """Of one GPU in a ring inside a node: NVLink 3 moves 300e9 each way, two thirds of it in practice."""
    network_bytes_per_second: float = 20e9
    """Of one GPU in a ring over nodes: a 200 Gb/s adapter for each GPU, 80 % of it in practice."""
    micro_batch_rows: int = 4
    tokens_a_row: float = 1998.7
    """Real tokens of a default row (benchmarks/gpu_parts/row_lengths.json)."""
    optimizer_bytes_per_second: float = 1.2e12
    """At which ZeRO's share of masters and moments is read and written: three quarters of an A100's memory."""
    slowest_rank: float = 1.01
    """Work of the most loaded rank over the mean."""

    def bandwidth(self, gpus: int) -> float:
        """Bytes per second of one GPU in a ring over all of them."""
        return self.node_bytes_per_second if gpus <= self.node_gpus else self.network_bytes_per_second


@dataclass(frozen=True)
class Communication:
    """How gradients are reduced at ZeRO 1."""

    name: str
    gradient_bytes: int
    """Bytes of one gradient value on the wire."""
    passes: int
    """2 for an all-reduce, 1 for a reduce-scatter."""


WAYS = (
    Communication("all-reduce in float32 (the default)", 4, 2),
    Communication("all-reduce in bf16", 2, 2),
    Communication("reduce to the owner in bf16 (the least)", 2, 1),
)


@dataclass(frozen=True)
class Step:
    """Seconds and bytes of one step on one GPU."""

    compute: float
    gradient_bytes: float
    parameter_bytes: float
    exposed: float
    optimizer: float

    @property
    def seconds(self) -> float:
        """The sum of the parts that do not overlap."""
        return self.compute + self.exposed + self.optimizer


def paper_shape() -> ModularStarEncoderConfig:
    """The 1B model."""
    return ModularStarEncoderConfig(**ModelConfig().hugging_face())


def flops_of(shape: ModularStarEncoderConfig, rows: float, tokens_a_row: float) -> float:
    """Model operations of a step of `rows` rows, all of the same length."""
    per_row = Denominators(round(MASKED_SHARE * tokens_a_row), 1), BatchCounts(round(tokens_a_row), 0, round(tokens_a_row**2))
    return rows * step_flops(shape, *per_row)


def step_on(gpus: int, cluster: Cluster, way: Communication) -> Step:
    """One step of the paper's 2,048 rows over `gpus` GPUs at TP = 1 and ZeRO 1.

    compute = operations x slowest rank / (peak x utilization), a third of it forward. Gradients travel while the backward
    pass of the last micro-batch runs (its accumulation is local before): what takes longer than that is exposed.
    Parameters are gathered in bf16 after the update, with nothing beside them. A ring moves (n - 1) / n of the bytes a pass;
    latencies are left out.
    """
    shape = paper_shape()
    parameters = encoder_parameters(shape, shape.num_hidden_layers) + head_parameters(shape)
    rows = GLOBAL_ROWS / gpus
    compute = flops_of(shape, rows, cluster.tokens_a_row) * cluster.slowest_rank / (cluster.peak * cluster.utilization)
    last_backward = compute * min(1.0, cluster.micro_batch_rows / rows) * 2 / 3
    ring = (gpus - 1) / gpus
    gradients, gathered = way.passes * ring * parameters * way.gradient_bytes, ring * parameters * 2
    bandwidth = cluster.bandwidth(gpus)
    exposed = max(0.0, gradients / bandwidth - last_backward) + gathered / bandwidth
    # Masters and two moments read and written, gradient read, weight written: 30 bytes a value of this rank's share.
    optimizer = parameters / gpus * 30 / cluster.optimizer_bytes_per_second
    return Step(compute, gradients, gathered, exposed, optimizer)


def utilization(gpus: int, cluster: Cluster, way: Communication) -> float:
    """Share of all GPUs' peak that the whole step reaches."""
    flops = flops_of(paper_shape(), GLOBAL_ROWS, cluster.tokens_a_row)
    return flops / (step_on(gpus, cluster, way).seconds * gpus * cluster.peak)


def markdown(cluster: Cluster) -> str:
    """The tables of docs/performance.md: by way of reducing at 512 GPUs, and by number of GPUs."""
    lines = [
        "| at 512 GPUs, 4 rows a GPU | gradients | parameters | compute | exposed | step | MFU | 245,000 steps | GPU-hours |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for way in WAYS:
        step = step_on(512, cluster, way)
        days = STEPS * step.seconds / 86400
        traffic = f"{step.gradient_bytes / 1e9:.1f} GB | {step.parameter_bytes / 1e9:.1f} GB"
        times = f"{step.compute:.2f} s | {step.exposed:.2f} s | {step.seconds:.2f} s"
        share = utilization(512, cluster, way)
        lines.append(f"| {way.name} | {traffic} | {times} | {share:.0%} | {days:.1f} days | {days * 24 * 512:,.0f} |")
    lines += ["", "| GPUs | rows a GPU | " + " | ".join(way.name for way in WAYS) + " |", "|---|---|" + "---|" * len(WAYS)]
    for gpus in GPUS:
        shares = " | ".join(f"{utilization(gpus, cluster, way):.0%}" for way in WAYS)
        lines.append(f"| {gpus} | {GLOBAL_ROWS // gpus} | {shares} |")
    return "\n".join(lines)


def replaced(text: str, table: str) -> str:
    """`text` with the part between the markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:before]}\n\n{table}\n\n{text[after:]}"


def plot(cluster: Cluster, path: Path) -> None:
    """Share of the peak over the number of GPUs, one line per way of reducing."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for way, style in zip(WAYS, ("-", "-", ":"), strict=True):
        shares = [100 * utilization(gpus, cluster, way) for gpus in GPUS]
        axes.plot(GPUS, shares, linestyle=style, marker="o", label=way.name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("GPUs (2,048 rows per step in all)")
    axes.set_ylabel("model FLOPs utilization, %")
    axes.set_title("Projected from one device's step, TP = 1, ZeRO 1")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def measured_utilization(path: Path) -> float:
    """The share of the peak that the GPU suite saw at the paper's 4 rows.

    Raises:
        KeyError: it has none, as a rehearsal on the CPU.
    """
    return float(json.loads(path.read_text())["micro_batches"]["4"]["model_flops_utilization"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, help="JSON that benchmarks/gpu_suite.py wrote on a GPU.")
    parser.add_argument("--markdown", type=Path, help="File in which to replace the part between the markers.")
    parser.add_argument("--plot", type=Path, help="SVG or PNG to write.")
    arguments = parser.parse_args()
    cluster = Cluster(utilization=measured_utilization(arguments.measured)) if arguments.measured else Cluster()
    table = markdown(cluster)
    print(table)
    if arguments.markdown:
        write_text(arguments.markdown, replaced(arguments.markdown.read_text(), table))
    if arguments.plot:
        plot(cluster, arguments.plot)


if __name__ == "__main__":
    main()
