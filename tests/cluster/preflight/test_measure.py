"""What processes measure: six live ones that meet by gloo as if on three nodes, and faults that end one of them."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs.config import PreflightConfig
from cluster.preflight.judge import Expected, judge
from cluster.preflight.measure import links, measure, place_of
from cluster.preflight.records import DONE, IMPORT, Measured, read_lines, to_line
from cluster.preflight.run import Process, collect, local_processes, measuring_words, srun_process
from cluster.slurm import SlurmError
from mose.errors import MoseError
from tests.distributed import free_port

ROOT = Path(__file__).parents[3]
# What the machine does beside the tests must not decide.
CALM = PreflightConfig(slow_fraction=0, run_gib=0, temporary_gib=0)


# Six processes that import torch once: forked before it starts any thread.
NODES, LOCAL_RANKS = 3, 2
FORKED = f"""
import os, sys
from pathlib import Path
import torch
from cluster.preflight import measure
from cluster.preflight.records import to_line
measure._PRODUCT_SECONDS = 0.05
torch.set_num_threads(1)
for rank in range({NODES * LOCAL_RANKS}):
    if os.fork() == 0:
        node, local = divmod(rank, {LOCAL_RANKS})
        place = measure.Place(rank, {NODES * LOCAL_RANKS}, local, {LOCAL_RANKS}, f"n{{node}}", "127.0.0.1", int(sys.argv[2]))
        def tell(**facts):
            os.write(1, (to_line({{"rank": rank, "node": place.node, **facts}}) + "\\n").encode())
        measure.measure(place, Path(sys.argv[1]), 0, 120, tell)
        os._exit(0)
for _ in range({NODES * LOCAL_RANKS}):
    os.wait()
"""


def test_processes_on_three_nodes_measure_themselves_and_each_other(tmp_path: Path) -> None:
    words = (sys.executable, "-c", FORKED, str(tmp_path / "not there yet"), str(free_port()))
    measured = collect([Process(words, {"PYTHONPATH": str(ROOT)})], 300)
    assert [(one.rank, one.node, one.stage) for one in measured] == [(rank, f"n{rank // 2}", DONE) for rank in range(6)]
    assert [one.fault + one.error for one in measured] == [""] * 6
    first = measured[0]
    for one in measured:
        assert one.flops and one.error_ratio is not None and one.error_ratio < 1 and one.products > 1
        assert (one.differing, one.digest, one.kind) == (0, first.digest, first.kind)
        assert one.memory >= one.memory_free > 0 and one.in_node and one.in_node_right and one.everywhere
    for one in measured[::2]:
        assert one.run_free and one.temporary_free
        assert {link.rank for link in one.links} == {0, 2, 4} - {one.rank}
        assert all(link.is_right and link.bytes_per_second > 0 for link in one.links)
        # All read the same clock; a busy machine delays a reading, but not each of five.
        assert min(abs(a - b) for a, b in zip(one.clock, first.clock, strict=True)) < CALM.clock_seconds
    # As GPUs, which other processes of this machine take no memory from.
    as_gpus = [dataclasses.replace(one, identity=str(one.rank), memory_free=one.memory) for one in measured]
    assert judge(as_gpus, Expected((), 2, CALM)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nodes", range(1, 12))
def test_links_are_a_ring_that_nobody_waits_on_forever(nodes: int) -> None:
    found = links(nodes)
    assert {frozenset(pair) for pair in found} == {frozenset((node, (node + 1) % nodes)) for node in range(nodes)} - {
        frozenset((0,))
    }
    assert len(found) == (nodes if nodes > 2 else nodes - 1)
    # The first half are pairs of different nodes: they run at the same time.
    assert len({node for pair in found[: nodes // 2] for node in pair}) == 2 * (nodes // 2)


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
    """One element of one product is off, as a faulty unit would have it; then of all products, and all elements are NaN."""
    import torch

    right = torch.mm
    calls: list[int] = []

    def play(fault: Callable[[torch.Tensor], object]) -> Measured:
        def faulty(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> None:
            right(a, b, out=out)
            calls.append(1)
            fault(out)

        monkeypatch.setattr(torch, "mm", faulty)
        return facts_of(0, tmp_path)

    def once(out: torch.Tensor) -> None:
        # The first is the one that all others are compared with, of those every second.
        if len(calls) == 3:
            out[3, 5] += 1e-3

    monkeypatch.setattr("cluster.preflight.measure._PRODUCT_SECONDS", 0.01)
    one = play(once)
    assert one.differing == 1 and one.error_ratio is not None and one.error_ratio < 1
    always = play(lambda out: out[7, 11].mul_(-8).sub_(8))
    assert always.differing == 0 and always.error_ratio is not None and always.error_ratio > 1
    assert (play(lambda out: out.fill_(float("nan"))).error_ratio or 0) > 1


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
    command = [sys.executable, "-m", "cluster.cli", "preflight", "--nodes", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "mose-cluster: error: nodes: -1, expected 0 or more\n")
