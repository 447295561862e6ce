"""`mose-cluster preflight`: measures the nodes of an allocation, or this machine, and prints a table; in a task it measures."""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.jobs.config import PreflightConfig
from cluster.preflight.judge import Expected, judge, verdict
from cluster.preflight.records import to_line
from cluster.preflight.run import GRACE_SECONDS, collect, local_processes, measuring_words, own_program, srun_process
from cluster.preflight.show import table, write_result
from mose.config import require


@dataclass(frozen=True)
class PreflightRequest:
    """Nodes to measure, and what is expected of them."""

    nodes: int = 0
    """Nodes to measure through srun, in this allocation or in one that srun asks for; 0: those of this allocation, or else
    this machine alone."""
    gpus_per_node: int = 0
    """GPUs that each node must have; 0 measures the CPU."""
    folder: str = "."
    """Folder whose free space is looked at: the run directory."""
    output: str = ""
    """JSON file to write the result to; empty: none."""
    measure: bool = False
    """In a process that `preflight` has started: measure, and print facts for it."""
    preflight: PreflightConfig = field(default_factory=PreflightConfig)

    def __post_init__(self) -> None:
        require(self.nodes >= 0, f"nodes: {self.nodes}, expected 0 or more")
        require(self.gpus_per_node >= 0, f"gpus_per_node: {self.gpus_per_node}, expected 0 or more")


def run_preflight(request: PreflightRequest) -> int:
    """Measure and print; 1 if a person should look.

    Raises:
        MoseError: srun is missing, or no process answered.
    """
    if request.measure:
        return _measure(request)
    limits, begun = request.preflight, time.monotonic()
    words = measuring_words(own_program(), Path(request.folder), request.gpus_per_node, limits.seconds)
    listed = os.environ.get("SLURM_JOB_NODELIST", "")
    known = tuple(slurm.expand_nodes(listed)) if listed else ()
    nodes = request.nodes or len(known)
    processes = [srun_process(words, nodes, request.gpus_per_node)] if nodes else local_processes(words, request.gpus_per_node)
    measured = collect(processes, limits.seconds + GRACE_SECONDS)
    if not measured:
        raise slurm.SlurmError("preflight: no process answered; see the lines above")
    expected = Expected(known if len(known) == nodes else (), request.gpus_per_node, limits)
    findings = judge(measured, expected)
    found = verdict(findings, nodes or 1, (), limits)
    seconds = time.monotonic() - begun
    print("\n".join(table(measured, findings)))
    for finding in findings:
        print(finding)
    print(f"{found.reason or 'exclude: ' + (','.join(found.exclude) or 'no node')} ({seconds:.1f} s)")
    if request.output:
        write_result(Path(request.output), measured, findings, found, seconds)
    return 1 if findings else 0


def _measure(request: PreflightRequest) -> int:
    from cluster.preflight.measure import measure, place_of

    place = place_of(os.environ, max(1, request.gpus_per_node))

    def tell(**facts: Any) -> None:
        # One write per line: processes of one machine share the pipe.
        sys.stdout.write(to_line({"rank": place.rank, "node": place.node, **facts}) + "\n")
        sys.stdout.flush()

    measure(place, Path(request.folder), request.gpus_per_node, request.preflight.seconds, tell)
    return 0
