"""A plan for people and for programs: the layouts, the one to take and why, failures, and when to save."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.jobs.stages import STAGES
from cluster.launch.freeze import resolved_config
from cluster.plan.failures import DAY, FAILURES_PER_GPU_DAY, FailureModel
from cluster.plan.layouts import DEVICES, GIB, Candidate, Cluster, PlannedRun, candidates, chosen, measured_device
from mose.config import require
from mose.errors import MoseError
from mose.files.json_file import parse_json
from mose.files.streams import table_text


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What a plan is for."""

    run_config: str = ""
    """Config file of a pre-training run."""
    nodes: int = 128
    """Number of nodes."""
    gpus_per_node: int = 4
    """GPUs per node."""
    device: str = "A100"
    """GPU: A100 (64 GB, as on Leonardo), A100-80 or H100."""
    cards: int = 4
    """Network cards per node."""
    card_gigabits: float = 100
    """Bit rate of a card in Gb/s."""
    measured: str = ""
    """JSON that benchmarks/gpu_suite.py wrote on the device: its share of the peak replaces the assumed one."""
    failures_per_gpu_day: float = FAILURES_PER_GPU_DAY
    """Failures per GPU and day; the default is that of Llama 3 (466 in 54 days of 16,384 GPUs)."""
    save_seconds: float = 20.0
    """Time for which training stands still for a checkpoint."""
    restart_seconds: float = 600.0
    """From a failure to the next step."""
    layouts: int = 12
    """Layouts to show."""

    def __post_init__(self) -> None:
        require(bool(self.run_config), "run_config: not given, expected the config file of a pre-training run")
        for name in ("nodes", "gpus_per_node", "cards", "layouts"):
            require(getattr(self, name) > 0, f"{name}: {getattr(self, name)}, expected 1 or more")
        require(self.device in DEVICES, f"device: {self.device!r}, expected one of {', '.join(DEVICES)}")
        for name in ("card_gigabits", "save_seconds"):
            require(getattr(self, name) > 0, f"{name}: {getattr(self, name)}, expected more than 0")
        for name in ("failures_per_gpu_day", "restart_seconds"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)}, expected 0 or more")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The layouts of a run on a cluster, and what follows from the one to take."""

    run: PlannedRun
    cluster: Cluster
    found: tuple[Candidate, ...]
    take: Candidate
    failures: FailureModel

    @property
    def days(self) -> float:
        """Of training without a failure."""
        return self.run.max_steps * self.take.seconds / DAY

    @property
    def checkpoint_steps(self) -> int:
        """Steps between two checkpoints by Daly's interval."""
        return max(1, round(self.failures.daly_seconds / self.take.seconds))


def make_plan(config: PlanConfig) -> Plan:
    """The plan of a run.

    Raises:
        MoseError: the config or the measurement cannot be used, or no layout fits.
    """
    run = PlannedRun.of(resolved_config(STAGES["pretrain"], Path(config.run_config), []))
    device, memory = DEVICES[config.device]
    if config.measured:
        try:
            values = parse_json(Path(config.measured).read_bytes())
        except (OSError, ValueError) as error:
            raise MoseError(f"measured: {config.measured}: {' '.join(str(error).split())}") from None
        device = measured_device(device, values, config.measured)
    cluster = Cluster(config.nodes, config.gpus_per_node, device, memory, config.cards, config.card_gigabits)
    found = tuple(candidates(run, cluster))
    rates = (config.failures_per_gpu_day, config.save_seconds, config.restart_seconds)
    return Plan(run, cluster, found, chosen(list(found)), FailureModel(cluster.gpus, *rates))


def as_plain(plan: Plan) -> dict[str, Any]:
    """The plan as JSON holds it: the layout to take, and the numbers of the run."""
    take = plan.take
    return {
        "gpus": plan.cluster.gpus,
        "tensor_parallel_size": take.tensor_ranks,
        "zero": take.zero,
        "micro_batch_rows": take.micro_batch_rows,
        "activation_checkpointing": take.checkpointing,
        "memory_gib": {name: round(value / GIB, 2) for name, value in dataclasses.asdict(take.memory).items()},
        "step_seconds": take.seconds,
        "days": plan.days,
        "gpu_hours": plan.days * 24 * plan.cluster.gpus,
        "failures": plan.failures.expected(plan.days),
        "checkpoint_every_steps": plan.checkpoint_steps,
        "goodput": plan.failures.goodput(plan.failures.daly_seconds),
    }


def text_of(plan: Plan, layouts: int) -> str:
    """The plan for people."""
    return "\n".join([table_text(_layout_table(plan, layouts)), *_sentences(plan)]) + "\n"


def _layout_table(plan: Plan, layouts: int) -> Table:
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    title = f"{plan.cluster.gpus} x {plan.cluster.device.name}, {plan.cluster.fabric.name}; GiB per device, fastest first"
    columns = ("TP", "ZeRO", "rows", "recompute", *parts, "needed", "step ms", "exposed ms", "tok/s/device", "days", "GPU-hours")
    table = Table(*columns, title=title)
    for one in plan.found[:layouts]:
        days = plan.run.max_steps * one.seconds / DAY
        sizes = [f"{getattr(one.memory, name) / GIB:.1f}" for name in parts]
        tokens = plan.run.global_rows * plan.run.max_length * 0.976 / one.seconds / plan.cluster.gpus
        numbers = [
            f"{one.needed_gib:.1f}" + ("" if one.fits else " !"),
            f"{1e3 * one.seconds:.0f}",
            f"{1e3 * one.step.exposed:.0f}",
        ]
        table.add_row(
            str(one.tensor_ranks),
            one.zero,
            str(one.micro_batch_rows),
            one.checkpointing,
            *sizes,
            *numbers,
            f"{tokens:,.0f}",
            f"{days:.2f}",
            f"{days * 24 * plan.cluster.gpus:,.0f}",
        )
    return table


def _sentences(plan: Plan) -> Sequence[str]:
    take, failures = plan.take, plan.failures
    goodput, gpus = failures.goodput(failures.daly_seconds), plan.cluster.gpus
    days, whole = plan.days, plan.days / goodput
    between = failures.mean_seconds_between_failures / 3600
    configured = plan.run.checkpoint_every_steps
    zero = "ZeRO 1 in nodes (parallel.zero_partition_ranks)" if take.zero == "1 in nodes" else f"ZeRO {take.zero}"
    spare = plan.cluster.memory_gib - take.needed_gib
    as_configured = failures.goodput(configured * take.seconds)
    return [
        f"take: TP {take.tensor_ranks}, {zero}, {take.micro_batch_rows} rows per micro-batch, recompute {take.checkpointing}: "
        f"the fastest that fits and can resume in another layout, with {spare:.0f} GiB to spare",
        f"a step: {1e3 * take.step.compute:.0f} ms computing, {1e3 * take.step.exposed:.0f} ms of traffic that nothing covers; "
        f"{take.step.gradient_bytes / 1e9:.1f} GB gradients and {take.step.parameter_bytes / 1e9:.1f} GB weights per device",
        f"the run: {days:.2f} days and {days * 24 * gpus:,.0f} GPU-hours without failures; "
        f"{whole:.2f} days and {whole * 24 * gpus:,.0f} GPU-hours with them",
        f"failures: {failures.expected(whole):.1f} expected, one in {between:.1f} h",
        f"checkpoints: every {failures.daly_seconds / 60:.0f} min (Daly; Young {failures.young_seconds / 60:.0f} min), "
        f"{plan.checkpoint_steps:,} steps: goodput {goodput:.1%}; every {configured:,} steps, as configured: {as_configured:.1%}",
        "assumed, not measured on this cluster: the device's share of its peak, the fabric's efficiency "
        "(mose/model/cost/step.py), save and restart times",
    ]


def print_plan(plan: Plan, layouts: int, as_json: bool) -> None:
    """Print the plan."""
    print(json.dumps(as_plain(plan), indent=1) if as_json else text_of(plan, layouts))
