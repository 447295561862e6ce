"""Findings from made-up measurements with planted faults; who is named, who is not, and what follows."""

import dataclasses
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.jobs.config import PreflightConfig
from cluster.preflight.judge import GIB, Expected, Finding, Verdict, judge, verdict
from cluster.preflight.records import DONE, MARK, Link, Measured, read_lines, to_line

LIMITS = PreflightConfig()


def healthy(nodes: int, gpus: int = 2, seed: int = 0) -> list[Measured]:
    """Measurements of nodes n0, n1, ... that differ by at most 5 %."""
    noise = random.Random(seed)
    found = []
    for rank in range(nodes * gpus):
        node, local = divmod(rank, gpus)
        others = [(node - 1) % nodes, (node + 1) % nodes] if nodes > 2 else [1 - node] if nodes == 2 else []
        found.append(
            Measured(
                rank,
                f"n{node}",
                local,
                DONE,
                run_free=100 * GIB if not local else None,
                temporary_free=50 * GIB if not local else None,
                devices=gpus,
                kind="A100",
                identity=f"gpu-{rank}",
                memory=64 * GIB,
                memory_free=63 * GIB,
                clock=tuple(1000.0 + number + noise.uniform(0, 0.05) for number in range(5)) if not local else (),
                products=20,
                digest="right",
                error_ratio=0.2,
                flops=250e12 * noise.uniform(0.95, 1),
                in_node=200e9 * noise.uniform(0.95, 1) if gpus > 1 else None,
                links=tuple(Link(other * gpus, 40e9 * noise.uniform(0.95, 1), True) for other in others) if not local else (),
            )
        )
    return found


def expected(nodes: int, gpus: int = 2, **limits: float) -> Expected:
    return Expected(tuple(f"n{number}" for number in range(nodes)), gpus, PreflightConfig(**limits))  # type: ignore[arg-type]


def planted(measured: list[Measured], node: str, local: int = 0, **facts: object) -> list[Measured]:
    """The same with other facts of one device."""
    return [
        dataclasses.replace(one, **facts) if (one.node, one.local_rank) == (node, local) else one  # type: ignore[arg-type]
        for one in measured
    ]


def slow_links(measured: list[Measured], node: int, gpus: int = 2, *, share: float = 0.3, right: bool = True) -> list[Measured]:
    """Every link of a node carries only this share."""

    def changed(one: Measured) -> tuple[Link, ...]:
        mine = one.node == f"n{node}"
        return tuple(
            Link(link.rank, link.bytes_per_second * share, right) if mine or link.rank == node * gpus else link
            for link in one.links
        )

    return [dataclasses.replace(one, links=changed(one)) for one in measured]


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 1000))
def test_healthy_nodes_have_no_findings(nodes: int, gpus: int, seed: int) -> None:
    assert judge(healthy(nodes, gpus, seed), expected(nodes, gpus)) == []


FAULTS = [
    ({"flops": 100e12}, "device 1: matrix products at 100 TFLOP/s, 41% of the others' median of 24", True),
    ({"in_node": 20e9}, "all-reduce in the node at 20 GB/s, 10% of the others' median of 19", True),
    ({"in_node_right": False}, "an all-reduce in the node gives a wrong sum", False),
    ({"digest": "wrong"}, "device 1: matrix product differs from that of", False),
    ({"differing": 3}, "device 1: 3 of 20 runs of one matrix product differ", False),
    ({"error_ratio": 1e300}, "device 1: wrong matrix product, error 1e+300 times what is allowed", False),
    ({"memory_free": 30 * GIB}, "device 1: 30.0 of 64.0 GiB free, expected 57.6", False),
    ({"identity": "gpu-4"}, "1 devices, expected 2", False),
    ({"fault": "device: CUDA error: uncorrectable ECC error"}, "rank 5, device: CUDA error: uncorrectable ECC error", False),
    ({"stage": "import of torch"}, "did not answer within 180 s: rank 5 is at 'import of torch'", False),
    ({"stage": "meeting the other nodes"}, "did not come past 'meeting the other nodes'", False),
]


@pytest.mark.parametrize(("facts", "message", "is_slow"), FAULTS)
def test_a_planted_fault_names_its_node_alone(facts: dict[str, object], message: str, is_slow: bool) -> None:
    findings = judge(planted(healthy(6), "n2", 1, **facts), expected(6))
    assert {finding.node for finding in findings} == {"n2"}
    assert any(message in str(finding) and finding.is_slow == is_slow for finding in findings), findings
    assert verdict(findings, 6, (), LIMITS) == Verdict(exclude=("n2",))


@given(st.integers(3, 12), st.data())
def test_any_slow_wrong_silent_or_skewed_node_is_found(nodes: int, data: st.DataObject) -> None:
    """Whatever the noise and wherever it is: that node and no other is named."""
    bad = data.draw(st.integers(0, nodes - 1))
    measured, name = healthy(nodes, 2, data.draw(st.integers(0, 99))), f"n{bad}"
    kind = data.draw(st.sampled_from(["slow", "link", "wrong sum", "wrong", "silent", "behind", "ahead", "full", "read-only"]))
    if kind == "slow":
        measured = planted(measured, name, data.draw(st.integers(0, 1)), flops=250e12 * data.draw(st.floats(0.0, 0.7)))
    elif kind in ("link", "wrong sum"):
        share = data.draw(st.floats(0.01, 0.7)) if kind == "link" else 1.0
        measured = slow_links(measured, bad, share=share, right=kind == "link")
    elif kind == "silent":
        measured = [one for one in measured if one.node != name]
    else:
        off = data.draw(st.floats(2.5, 1e6)) * (1 if kind == "ahead" else -1)
        clock = tuple(value + off for value in measured[2 * bad].clock)
        facts: dict[str, dict[str, object]] = {
            "wrong": {"digest": "other"},
            "full": {"run_free": GIB},
            "read-only": {"temporary_free": None},
        }
        measured = planted(measured, name, 0, **facts.get(kind, {"clock": clock}))
    findings = judge(measured, expected(nodes))
    assert {finding.node for finding in findings} == {name}, findings
    assert verdict(findings, nodes, (), LIMITS).exclude == (name,)


def test_a_silent_node_is_named_with_what_is_known() -> None:
    gone = [one for one in healthy(3) if one.node != "n1"]
    assert str(judge(gone, expected(3))[0]) == "n1: did not answer within 180 s: 2 of 2 processes printed nothing"
    # Those that wait for it are not to blame.
    waiting = [dataclasses.replace(one, stage="meeting the other nodes") for one in gone]
    assert {finding.node for finding in judge(waiting, expected(3))} == {"n1"}


def test_what_nobody_can_tell_names_no_node() -> None:
    two = healthy(2)
    assert [finding.node for finding in judge(planted(two, "n1", 0, clock=(2000.0,) * 5), expected(2))] == [""]
    halves = [dataclasses.replace(one, digest=one.node) for one in two]
    findings = judge(halves, expected(2))
    assert [str(finding) for finding in findings] == [
        "matrix products of 4 devices of A100 disagree, none has most on its side: n0, n1"
    ]
    assert verdict(findings, 2, (), LIMITS) == Verdict()
    # One link of a ring of six, and neither end has another bad one.
    six = healthy(6)
    cut = [
        dataclasses.replace(
            one,
            links=tuple(Link(link.rank, 1e9, True) if {one.rank, link.rank} == {2, 4} else link for link in one.links),
        )
        for one in six
    ]
    (finding,) = judge(cut, expected(6))
    assert finding.node == "" and "all-reduce of n1 and n2 at 1 GB/s is slow: the median is" in finding.message


def test_kinds_are_compared_among_themselves() -> None:
    mixed = [
        dataclasses.replace(one, kind="H100", flops=700e12, digest="h") if one.node in ("n0", "n1") else one for one in healthy(6)
    ]
    assert judge(mixed, expected(6)) == []
    assert {finding.node for finding in judge(planted(mixed, "n0", 0, flops=250e12), expected(6))} == {"n0"}


def test_the_need_of_the_plan_counts() -> None:
    findings = judge(healthy(2), expected(2, device_gib=70))
    assert "device 0: 63.0 of 64.0 GiB free, expected 70.0" in findings[0].message
    found = verdict(findings, 2, (), LIMITS)
    assert found.ends and found.reason == "2 of 2 nodes fail the preflight: not a fault of single nodes"


def test_a_full_run_directory_is_no_fault_of_a_node() -> None:
    full = [dataclasses.replace(one, run_free=GIB) for one in healthy(3)]
    findings = judge(full, expected(3))
    assert [str(finding) for finding in findings] == ["the run directory has 1.0 GiB free, expected 2"]
    assert verdict(findings, 3, (), LIMITS) == Verdict()


def test_a_job_of_one_node_gets_another_one() -> None:
    assert verdict([Finding("n1", "broken")], 1, (), LIMITS) == Verdict(exclude=("n1",))


def test_exclusions_are_capped() -> None:
    slow, broken = Finding("n1", "slow", is_slow=True), Finding("n2", "broken")
    limits = PreflightConfig(max_excluded=2)
    assert verdict([slow], 9, ("n7",), limits).exclude == ("n1",)
    assert verdict([slow], 9, ("n7", "n8"), limits) == Verdict(
        reason="3 nodes failed preflights, preflight.max_excluded is 2: training starts with slow nodes"
    )
    assert verdict([broken], 9, ("n7", "n8"), limits).ends
    assert verdict([], 9, ("n7", "n8", "n9"), limits) == Verdict()


def test_nothing_measured_says_nothing() -> None:
    assert judge([], expected(4)) == []


def test_lines_add_up_and_what_is_no_fact_is_passed_over() -> None:
    lines = [
        "a library's warning",
        to_line({"rank": 1, "node": "n2", "stage": "begin"}),
        to_line({"rank": 0, "node": "n1", "stage": "begin"}),
        to_line({"rank": 1, "node": "n2", "links": [{"rank": 0, "bytes_per_second": 5.0, "is_right": True}]}),
        to_line({"rank": 1, "node": "n2", "stage": DONE, "flops": 3.5, "clock": [1.0, 2.0]}),
        to_line({"rank": 1, "node": "n2", "links": [{"rank": 2, "bytes_per_second": 6.0, "is_right": True}]}),
        MARK + '{"rank": 1, "node"',
        MARK + json.dumps({"rank": "one", "node": "n2"}),
    ]
    first, second = read_lines(lines)
    assert (first.rank, first.stage) == (0, "begin")
    assert (second.stage, second.flops, second.clock) == (DONE, 3.5, (1.0, 2.0))
    assert [link.rank for link in second.links] == [0, 2]
