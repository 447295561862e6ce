"""Plans: failures by hand, memory and time equal to those of --dry-run and of benchmarks/scaling.py, the layout to take."""

import json
import math
from pathlib import Path

import pytest

from cluster.cli import commands
from cluster.plan.failures import DAY, FailureModel
from cluster.plan.layouts import DEVICES, Cluster, PlannedRun, candidates, chosen
from cluster.plan.show import PlanConfig, make_plan, text_of
from mose.command import run_command
from mose.config import load_config, to_plain
from mose.errors import MoseError
from mose.model.cost.step import IN_NODE_FP32, PAPERS_FABRIC, Run, step_on
from pretrain.analysis.estimate import estimate_memory
from pretrain.config.run import Layout, PretrainConfig

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "configs/mose_1b_512gpu_tp1_zero1.yaml"


def cluster(nodes: int = 128, memory: float = 64.0) -> Cluster:
    return Cluster(nodes, 4, DEVICES["A100"][0], memory, 4, 100)


def test_failures_by_hand() -> None:
    """512 GPUs at one failure per 1,000 GPU-days: one in 168,750 s; Young sqrt(2 x 20 x 168,750)."""
    found = FailureModel(512, 0.001, 20.0, 600.0)
    assert found.mean_seconds_between_failures == pytest.approx(168_750)
    assert found.young_seconds == pytest.approx(2598.08, abs=0.01)
    assert found.daly_seconds == pytest.approx(2598.08 * (1 + math.sqrt(20 / 337_500) / 3 + 20 / 337_500 / 9) - 20, abs=0.1)
    assert found.expected(10) == pytest.approx(10 * DAY / 168_750)
    assert found.goodput(2000.0) == pytest.approx(2000 / 2020 * (1 - 1600 / 168_750))
    assert FailureModel(8, 0.0).goodput(3600.0) == pytest.approx(3600 / 3620)


def test_no_interval_is_better_than_dalys() -> None:
    found = FailureModel(512, 0.001, 20.0, 0.0)
    best = max(range(200, 20_000, 10), key=found.goodput)
    assert found.daly_seconds == pytest.approx(best, rel=0.02)


def test_memory_and_time_are_those_of_the_dry_run_and_of_the_benchmark() -> None:
    config = load_config(PretrainConfig, PAPER)
    found = candidates(PlannedRun.of(to_plain(config)), cluster())
    (ours,) = [one for one in found if (one.tensor_ranks, one.zero, one.micro_batch_rows) == (1, "1 in nodes", 4)][:1]
    assert ours.checkpointing == "none"
    assert ours.memory == estimate_memory(config, Layout.of(config, 512))
    assert ours.seconds == pytest.approx(step_on(512, Run(fabric=PAPERS_FABRIC), IN_NODE_FP32).seconds, rel=1e-3)


def test_the_paper_takes_the_layout_of_the_shipped_config(capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(PlanConfig(str(PAPER)))
    assert (plan.take.tensor_ranks, plan.take.zero, plan.take.micro_batch_rows) == (1, "1 in nodes", 4)
    assert 1.0 < plan.days < 1.3
    text = text_of(plan, 3)
    assert "take: TP 1, ZeRO 1 in nodes" in text and "Daly" in text and text.count("│ none") == 2
    words = ["plan", "--run_config", str(PAPER), "--json"]
    assert run_command("mose-cluster", "Jobs.", commands(), words) == 0
    assert json.loads(capsys.readouterr().out)["zero"] == "1 in nodes"


def test_smaller_devices_recompute_and_the_smallest_do_not_fit() -> None:
    run = PlannedRun.of(to_plain(load_config(PretrainConfig, PAPER)))
    small = chosen(candidates(run, cluster(memory=20.0)))
    assert small.fits and (small.checkpointing != "none" or small.micro_batch_rows < 4)
    with pytest.raises(MoseError, match=r"device: no layout fits; the smallest \(TP 4, ZeRO 2"):
        chosen(candidates(run, cluster(memory=2.1)))
    with pytest.raises(MoseError, match="nodes: no layout divides"):
        chosen(candidates(run, cluster(nodes=4096)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run_config: not given"),
        (["--run_config", "none.yaml"], "none.yaml: no such file"),
        (["--run_config", str(PAPER), "--device", "T4"], "device: 'T4', expected one of A100"),
        (["--run_config", str(PAPER), "--nodes", "0"], "nodes: 0, expected 1 or more"),
        (["--run_config", str(PAPER), "--measured", "none.json"], "measured: none.json: [Errno 2]"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("mose-cluster", "Jobs.", commands(), ["plan", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err


def test_a_measurement_replaces_the_assumed_share_of_the_peak(tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    path.write_text(json.dumps({"micro_batches": {"4": {"model_flops_utilization": 0.25}}}))
    slow, fast = make_plan(PlanConfig(str(PAPER), measured=str(path))), make_plan(PlanConfig(str(PAPER)))
    assert slow.take.step.compute == pytest.approx(2 * fast.take.step.compute)
    path.write_text("{}")
    with pytest.raises(MoseError, match="model_flops_utilization: missing"):
        make_plan(PlanConfig(str(PAPER), measured=str(path)))
