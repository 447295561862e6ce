"""What one device's step implies for the paper's run: time per step, traffic, share of the peak and days by fabric and GPUs.

Arithmetic, no measurement of a cluster; assumptions are fields of the classes in mose/model/cost/step.py. The step of
one device comes from a result of benchmarks/gpu_suite.py where there is one, else from an assumed share of the peak.

python -m benchmarks.scaling [--measured benchmarks/results/gpu_suite_DATE.json] [--markdown docs/performance.md]
    [--plot docs/images/scaling.svg]
"""

import argparse
import dataclasses
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.scaling_parts.peers import PEERS
from mose.files.atomic_file import write_text
from mose.model.cost.step import (
    A100,
    H100,
    PAPERS_FABRIC,
    WAYS,
    ZERO_1_FP32,
    Fabric,
    Run,
    step_on,
    utilization,
)

STEPS = 245_000
GPUS = (8, 16, 32, 64, 128, 256, 512)
FABRICS = (
    (A100, Fabric(4, 1, 200)),
    (A100, PAPERS_FABRIC),
    (A100, Fabric(4, 4, 200)),
    (A100, Fabric(8, 8, 200)),
    (H100, Fabric(4, 4, 200, nvlink_bytes_per_second=300e9)),
    (H100, Fabric(8, 8, 400, nvlink_bytes_per_second=300e9)),
)
BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"


def markdown(run: Run) -> str:
    """The tables of docs/performance.md: by way at 512 GPUs, by fabric, by number of GPUs, and published runs."""
    parts = ([*_by_way(run), ""], [*_by_fabric(run), ""], [*_by_number(run), ""], _peers())
    return "\n".join(line for part in parts for line in part)


def _by_way(run: Run) -> list[str]:
    header = "gradients | weights | compute | reduction | gather | optimizer | step | MFU | 245,000 steps | GPU-hours"
    lines = [f"| 512 x {run.device.name}, {run.fabric.name} | {header} |", "|---" * 11 + "|"]
    for way in WAYS:
        step = step_on(512, run, way)
        days = STEPS * step.seconds / 86400
        traffic = f"{step.gradient_bytes / 1e9:.1f} GB | {step.parameter_bytes / 1e9:.1f} GB"
        milliseconds = (step.compute, step.reduction, step.gather, step.optimizer, step.seconds)
        times = " | ".join(f"{1e3 * seconds:.0f} ms" for seconds in milliseconds)
        share = utilization(512, run, way)
        lines.append(f"| {way.name} | {traffic} | {times} | {share:.1%} | {days:.2f} days | {days * 24 * 512:,.0f} |")
    return lines


def _by_fabric(run: Run) -> list[str]:
    lines = ["| MFU at 512 GPUs, 4 rows per GPU | bus GB/s | " + " | ".join(way.name for way in WAYS) + " |"]
    lines.append("|---" * (2 + len(WAYS)) + "|")
    for listed, fabric in FABRICS:
        # A measured share is of the device that it was measured on.
        device = run.device if listed.name == run.device.name else listed
        on_it = dataclasses.replace(run, device=device, fabric=fabric)
        shares = " | ".join(f"{utilization(512, on_it, way):.1%}" for way in WAYS)
        lines.append(f"| {device.name}, {fabric.name} | {fabric.bus(512) / 1e9:.0f} | {shares} |")
    return lines


def _by_number(run: Run) -> list[str]:
    lines = ["| GPUs | rows per GPU | " + " | ".join(way.name for way in WAYS) + " |", "|---" * (2 + len(WAYS)) + "|"]
    for gpus in GPUS:
        shares = " | ".join(f"{utilization(gpus, run, way):.1%}" for way in WAYS)
        lines.append(f"| {gpus} | {run.global_rows // gpus} | {shares} |")
    return lines


def _peers() -> list[str]:
    lines = ["| published run | GPU-hours | MFU (6ND) | one GPU alone, by the model | assumed here | source |", "|---" * 6 + "|"]
    for peer in PEERS:
        alone = peer.published / peer.kept(ZERO_1_FP32)
        shares = f"{peer.published:.0%} | {alone:.0%} | {peer.device.utilization:.0%}"
        lines.append(f"| {peer.name}, {peer.gpus} x {peer.device.name[:4]} | {peer.gpu_hours:,.0f} | {shares} | {peer.source} |")
    return lines


def replaced(text: str, table: str) -> str:
    """`text` with the part between the markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:before]}\n\n{table}\n\n{text[after:]}"


def plot(run: Run, path: Path) -> None:
    """Share of the peak over the number of GPUs, one line per way of communicating."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for way, style in zip(WAYS, ("-", "--", "-", "--", ":"), strict=True):
        shares = [100 * utilization(gpus, run, way) for gpus in GPUS]
        axes.plot(GPUS, shares, linestyle=style, marker="o", label=way.name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("GPUs (2,048 rows per step in all)")
    axes.set_ylabel("model FLOPs utilization, %")
    axes.set_title(f"Projected from one device's step: {run.device.name}, {run.fabric.name}")
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
    parser.add_argument("--device", choices=("A100", "H100"), default="A100", help="GPU of the tables.")
    parser.add_argument("--markdown", type=Path, help="File in which to replace the part between the markers.")
    parser.add_argument("--plot", type=Path, help="SVG or PNG to write.")
    arguments = parser.parse_args()
    device = A100 if arguments.device == "A100" else H100
    if arguments.measured:
        device = dataclasses.replace(device, utilization=measured_utilization(arguments.measured))
    run = Run(device=device)
    table = markdown(run)
    print(table)
    if arguments.markdown:
        write_text(arguments.markdown, replaced(arguments.markdown.read_text(), table))
    if arguments.plot:
        plot(run, arguments.plot)


if __name__ == "__main__":
    main()
