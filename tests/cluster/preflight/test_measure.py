"""What processes measure: two live ones that meet by gloo as if on two nodes, links on a ring, faults that end one of them."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs.config import PreflightConfig
from cluster.preflight.judge import Expected, judge
from cluster.preflight.measure import measure, neighbours, place_of
from cluster.preflight.records import DONE, IMPORT, Measured, read_lines, to_line
from cluster.preflight.run import Process, collect, local_processes, measuring_words, srun_process
from cluster.slurm import SlurmError
from mose.errors import MoseError
from tests.distributed import free_port

PROGRAM = [sys.executable, "-m", "cluster.cli"]
# What the machine does beside the tests must not decide.
CALM = PreflightConfig(slow_fraction=0, run_gib=0, temporary_gib=0)


def two_nodes(folder: Path) -> list[Process]:
    words = tuple(measuring_words(PROGRAM, folder, 0, 120))
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    return [Process(words, where | {"RANK": str(rank), "SLURMD_NODENAME": f"n{rank}"}) for rank in range(2)]


def test_two_processes_measure_themselves_and_each_other(tmp_path: Path) -> None:
    measured = collect(two_nodes(tmp_path / "not there yet"), 300)
    assert [(one.rank, one.node, one.stage, one.fault + one.error) for one in measured] == [
        (0, "n0", DONE, ""),
        (1, "n1", DONE, ""),
    ]
    for one, other in (measured, measured[::-1]):
        assert one.flops and one.error_ratio is not None and one.error_ratio < 1
        assert one.products > 1 and one.differing == 0 and one.digest == other.digest and one.kind == other.kind
        assert one.run_free and one.temporary_free and one.memory >= one.memory_free > 0
        assert [link.rank for link in one.links] == [other.rank] and one.links[0].is_right
        assert one.links[0].bytes_per_second > 0 and one.everywhere
    # Both read the same clock; a busy machine delays a reading, but not each of five.
    assert min(abs(a - b) for a, b in zip(measured[0].clock, measured[1].clock, strict=True)) < CALM.clock_seconds
    assert judge(measured, Expected(("n0", "n1"), 0, CALM)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nodes", range(1, 12))
def test_neighbours_turn_to_each_other_at_the_same_time(nodes: int) -> None:
    """Played: a node waits until the one that it turns to turns to it; nobody may wait forever."""
    waiting = [neighbours(node, nodes) for node in range(nodes)]
    links = {tuple(sorted((node, other))) for node in range(nodes) for other in waiting[node]}
    assert len(links) == (nodes if nodes > 2 else nodes - 1)
    while any(waiting):
        met = [node for node in range(nodes) if waiting[node] and waiting[waiting[node][0]][:1] == [node]]
        assert met, waiting
        for node in met:
            waiting[node].pop(0)


def facts_of(gpus: int, folder: Path) -> Measured:
    """What one process without others says."""
    place = place_of({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "SLURMD_NODENAME": "n1"}, 1)
    lines: list[str] = []

    def tell(**facts: Any) -> None:
        lines.append(to_line({"rank": 0, "node": "n1", **facts}))

    measure(place, folder, gpus, 60, tell)
    assert all(len(line) < 1000 for line in lines)
    (one,) = read_lines(lines)
    return one


def test_a_wrong_product_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One element of some products is off, as a faulty unit would have it."""
    import torch

    right = torch.mm
    calls: list[int] = []

    def faulty(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        right(a, b, out=out)
        calls.append(1)
        if len(calls) == 2:
            out[3, 5] += 1e-3
        return out

    monkeypatch.setattr("cluster.preflight.measure._PRODUCT_SECONDS", 0.01)
    monkeypatch.setattr(torch, "mm", faulty)
    one = facts_of(0, tmp_path)
    assert one.differing == 1 and one.error_ratio is not None and one.error_ratio < 1
    monkeypatch.setattr(torch, "mm", right)
    plain = torch.Tensor.__matmul__

    def flipped(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found = plain(a, b)
        if found.shape == (512, 512):
            found[7, 11] = -8 * found[7, 11].abs() - 8
        return found

    monkeypatch.setattr(torch.Tensor, "__matmul__", flipped)
    one = facts_of(0, tmp_path)
    assert one.error_ratio is not None and one.error_ratio > 1
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: plain(a, b) * float("nan"))
    assert (facts_of(0, tmp_path).error_ratio or 0) > 1


def test_a_node_without_its_gpus_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    one = facts_of(1, tmp_path)
    assert (one.devices, one.stage) == (0, DONE)
    findings = [str(finding) for finding in judge([one], Expected(("n1",), 1, CALM))]
    assert findings == ["n1: rank 0, device: no device 0: 0 visible", "n1: 0 devices, expected 1"]


def test_a_process_that_hangs_is_ended_and_leaves_what_it_said() -> None:
    said = to_line({"rank": 0, "node": "n1", "stage": IMPORT})
    (one,) = collect([Process(("sh", "-c", f"echo '{said}'; echo noise; exec sleep 600"), {})], 1.0)
    assert (one.node, one.stage) == ("n1", IMPORT)
    (finding,) = judge([dataclasses.replace(one)], Expected(("n1",), 0, CALM))
    assert str(finding) == "n1: did not answer within 180 s: rank 0 is at 'import of torch'"
    assert collect([Process(("sleep", "600"), {})], 600, stop=lambda: True) == []
    with pytest.raises(SlurmError, match="srun-of-nowhere: not found on this machine"):
        collect([Process(("srun-of-nowhere",), {})], 1)


def test_places() -> None:
    task = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "30017"}
    place = place_of(task | {"SLURMD_NODENAME": "r3", "SLURM_STEP_NODELIST": "r[1-4]"}, 2)
    assert (place.rank, place.index, place.nodes, place.node, place.address, place.port) == (5, 2, 4, "r3", "r1", 20017)
    assert place.ranks_of(3, 0) == [0, 1, 6, 7]
    with pytest.raises(MoseError, match="SLURM_PROCID is not set; expected --measure only in processes that `preflight` starts"):
        place_of({}, 1)


def test_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    words = measuring_words(["mose-cluster"], Path("my run"), 4, 180)
    assert words[:4] == ["mose-cluster", "preflight", "--measure", "true"] and "my run" in words
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "32")
    started = " ".join(srun_process(words, 128, 4).words)
    assert started.startswith("srun --nodes=128 --ntasks=512 --ntasks-per-node=4 --distribution=block")
    assert "--cpus-per-task=8 mose-cluster preflight" in started
    assert [process.environment["RANK"] for process in local_processes(words, 2)] == ["0", "1"]


def test_bad_input_is_one_line() -> None:
    command = [*PROGRAM, "preflight", "--nodes", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert (done.returncode, done.stderr) == (2, "mose-cluster: error: nodes: -1, expected 0 or more\n")
