"""Covers the projection to many GPUs: the step's arithmetic by hand, what limits it, and that docs/performance.md shows it."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks.scaling import (
    GPUS,
    WAYS,
    Cluster,
    flops_of,
    markdown,
    measured_utilization,
    paper_shape,
    plot,
    replaced,
    step_on,
    utilization,
)

ROOT = Path(__file__).parents[2]
IN_FLOAT32, IN_BF16, TO_THE_OWNER = WAYS


def test_the_papers_step_by_hand() -> None:
    step = step_on(512, Cluster(slowest_rank=1.0), IN_BF16)
    # 4 rows x 1,998.7 tokens x 7.14 GFLOP at half of 312 TFLOP/s.
    assert step.compute == pytest.approx(4 * 1998.7 * 7.14e9 / 156e12, rel=0.01)
    # An all-reduce of 1.10e9 gradients of 2 bytes moves twice (n - 1) / n of them.
    assert step.gradient_bytes == pytest.approx(2 * 511 / 512 * 1.10e9 * 2, rel=0.01)
    assert step.gradient_bytes == pytest.approx(2 * step.parameter_bytes)


def test_operations_grow_with_rows_and_faster_with_their_length() -> None:
    shape = paper_shape()
    assert flops_of(shape, 8, 1000) == 2 * flops_of(shape, 4, 1000)
    assert flops_of(shape, 4, 2000) > 2 * flops_of(shape, 4, 1000)


def test_a_fast_network_leaves_the_compute_alone() -> None:
    cluster = Cluster(network_bytes_per_second=1e15, optimizer_bytes_per_second=1e18, slowest_rank=1.0)
    assert utilization(512, cluster, IN_FLOAT32) == pytest.approx(cluster.utilization, rel=1e-3)


def test_traffic_counts_as_far_as_the_backward_pass_does_not_hide_it() -> None:
    slow = Cluster(network_bytes_per_second=1e9)
    step = step_on(512, slow, IN_BF16)
    hidden = step.compute * 2 / 3
    assert step.exposed == pytest.approx((step.gradient_bytes + step.parameter_bytes) / 1e9 - hidden)
    # With 8 micro-batches only the last one's backward pass has anything beside it.
    assert step_on(64, slow, IN_BF16).exposed > step_on(64, dataclasses.replace(slow, micro_batch_rows=32), IN_BF16).exposed


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_more_gpus_never_reach_a_larger_share(way: object) -> None:
    shares = [utilization(gpus, Cluster(), way) for gpus in GPUS]  # type: ignore[arg-type]
    assert shares == sorted(shares, reverse=True)
    assert (
        utilization(512, Cluster(), IN_FLOAT32)
        < utilization(512, Cluster(), IN_BF16)
        <= utilization(512, Cluster(), TO_THE_OWNER)
    )


def test_the_document_shows_what_the_command_prints() -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    assert replaced(text, markdown(Cluster())) == text


def test_a_measured_step_takes_the_place_of_the_assumption(tmp_path: Path) -> None:
    (tmp_path / "suite.json").write_text('{"micro_batches": {"4": {"model_flops_utilization": 0.41}}}')
    assert measured_utilization(tmp_path / "suite.json") == 0.41


def test_the_plot_is_an_image(tmp_path: Path) -> None:
    plot(Cluster(), tmp_path / "images" / "scaling.png")
    assert (tmp_path / "images" / "scaling.png").read_bytes().startswith(b"\x89PNG")
