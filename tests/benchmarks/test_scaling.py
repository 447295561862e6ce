"""Covers the projection to many GPUs: the step's arithmetic by hand, what limits it, and that docs/performance.md shows it."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks.scaling import GPUS, markdown, measured_utilization, plot, replaced
from benchmarks.scaling_parts.peers import PEERS
from mose.model.cost.step import (
    A100,
    IN_NODE_BF16,
    IN_NODE_FP32,
    PAPERS_FABRIC,
    WAYS,
    ZERO_1_BF16,
    ZERO_1_FP32,
    Fabric,
    Run,
    step_on,
    uncovered,
    utilization,
)

ROOT = Path(__file__).parents[2]
NO_LATENCY = Fabric(4, 4, 100, network_latency=0.0, nvlink_latency=0.0)


def test_the_papers_step_by_hand() -> None:
    step = step_on(512, Run(slowest_rank=1.0), ZERO_1_BF16)
    # 4 rows x 1,998.7 tokens x 7.14 GFLOP at half of 312 TFLOP/s.
    assert step.compute == pytest.approx(4 * 1998.7 * 7.14e9 / 156e12, rel=0.01)
    # An all-reduce of 1.10e9 gradients of 2 bytes moves twice (n - 1) / n of them.
    assert step.gradient_bytes == pytest.approx(2 * 511 / 512 * 1.10e9 * 2, rel=0.01)
    assert step.gradient_bytes == pytest.approx(2 * step.parameter_bytes)


def test_the_goal_at_512_gpus_of_the_papers_kind() -> None:
    assert utilization(512, Run(), IN_NODE_FP32) >= 0.45 > utilization(512, Run(), ZERO_1_FP32)


def test_a_nodes_cards_add_up_and_never_exceed_nvlink() -> None:
    assert PAPERS_FABRIC.bus(512) == pytest.approx(4 * 12.5e9 * 0.8)
    assert Fabric(4, 1, 200).bus(512) == pytest.approx(20e9)
    assert Fabric(8, 8, 3200).bus(512) == PAPERS_FABRIC.bus(4) == 200e9
    # Up and down a tree over 128 nodes, and through the four GPUs of a node.
    assert PAPERS_FABRIC.latency(512) == pytest.approx(2 * 7 * 10e-6 + 4 * 3e-6)


def test_operations_grow_with_rows_and_faster_with_their_length() -> None:
    run = Run(tokens_a_row=1000)
    assert run.flops(8) == 2 * run.flops(4)
    assert dataclasses.replace(run, tokens_a_row=2000).flops(4) > 2 * run.flops(4)


def test_a_fast_network_leaves_the_compute_alone() -> None:
    fabric = Fabric(4, 4, 1e9, nvlink_bytes_per_second=1e15, network_latency=0.0, nvlink_latency=0.0)
    device = dataclasses.replace(A100, memory_bytes_per_second=1e18)
    run = Run(device=device, fabric=fabric, slowest_rank=1.0)
    assert utilization(512, run, ZERO_1_FP32) == pytest.approx(A100.utilization, rel=1e-3)


def test_the_last_bucket_is_never_covered() -> None:
    backward, buckets = 1.0, 10
    # Each takes half as long as the backward pass takes to fill one.
    assert uncovered(0.05 * buckets * NO_LATENCY.bus(512), buckets, backward, NO_LATENCY, 512) == pytest.approx(0.05)
    # Each takes twice as long: the first begins after a tenth of the pass, then one follows the other.
    assert uncovered(0.2 * buckets * NO_LATENCY.bus(512), buckets, backward, NO_LATENCY, 512) == pytest.approx(0.1 + 2.0 - 1.0)


def test_only_the_last_micro_batchs_backward_pass_covers_the_reduction() -> None:
    slow = Run(fabric=Fabric(4, 1, 10))
    assert (
        step_on(64, slow, ZERO_1_BF16).exposed > step_on(64, dataclasses.replace(slow, micro_batch_rows=32), ZERO_1_BF16).exposed
    )


def test_partitions_in_nodes_gather_over_nvlink_and_update_more() -> None:
    flat, in_node = step_on(512, Run(), ZERO_1_FP32), step_on(512, Run(), IN_NODE_FP32)
    assert in_node.gather < flat.gather / 5
    assert in_node.optimizer == pytest.approx(flat.optimizer * 512 / 4)
    assert (in_node.reduction, in_node.gradient_bytes) == (flat.reduction, flat.gradient_bytes)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_more_gpus_never_reach_a_larger_share(way: object) -> None:
    shares = [utilization(gpus, Run(), way) for gpus in GPUS]  # type: ignore[arg-type]
    assert shares == sorted(shares, reverse=True)
    assert (
        utilization(512, Run(), ZERO_1_FP32)
        < utilization(512, Run(), ZERO_1_BF16)
        < utilization(512, Run(), IN_NODE_FP32)
        < utilization(512, Run(), IN_NODE_BF16)
    )


def test_published_shares_of_peers() -> None:
    """As shared by their authors, or counted from their GPU-hours."""
    esm, tiny, modern = PEERS
    assert (round(esm.published, 2), round(tiny.published, 2), round(modern.published, 2)) == (0.62, 0.51, 0.28)
    # One node exposes little, 256 GPUs more.
    assert 0.9 < esm.kept(ZERO_1_FP32) < modern.kept(ZERO_1_FP32) < 1


def test_the_document_shows_what_the_command_prints() -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    assert replaced(text, markdown(Run())) == text


def test_a_measured_step_takes_the_place_of_the_assumption(tmp_path: Path) -> None:
    (tmp_path / "suite.json").write_text('{"micro_batches": {"4": {"model_flops_utilization": 0.41}}}')
    assert measured_utilization(tmp_path / "suite.json") == 0.41


def test_the_plot_is_an_image(tmp_path: Path) -> None:
    plot(Run(), tmp_path / "images" / "scaling.png")
    assert (tmp_path / "images" / "scaling.png").read_bytes().startswith(b"\x89PNG")
