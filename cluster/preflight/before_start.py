"""The preflight of a training job, before a start: measured by srun, written into the launch folder, judged."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster import slurm
from cluster.jobs.config import SuperviseConfig
from cluster.preflight.judge import Expected, Verdict, judge, verdict
from cluster.preflight.run import GRACE_SECONDS, collect, local_processes, measuring_words, own_program, srun_process
from cluster.preflight.show import write_result


class Preflight:
    """Measures `nodes` once; `run` returns what follows, and lines for the job's log."""

    def __init__(self, config: SuperviseConfig, nodes: Sequence[str], folder: Path, result: Path):
        """`folder`: the run directory; `result`: the JSON file to write."""
        self._config, self._nodes, self._folder, self._result = config, tuple(nodes), folder, result

    def run(self, excluded: Sequence[str], stop: Callable[[], bool]) -> tuple[Verdict, list[str]]:
        """Measure and judge; `excluded` are nodes that earlier preflights of this run named.

        A preflight that could not run at all proves nothing about any node: training starts, and the log says so.
        """
        limits, gpus = self._config.preflight, self._config.gpus_per_node
        begun = time.monotonic()
        # In a container only the name of the program is known, on the host also its place.
        program = [*self._config.container, "mose-cluster"] if self._config.container else own_program()
        words = measuring_words(program, self._folder, gpus, limits.seconds)
        try:
            processes = [srun_process(words, len(self._nodes), gpus)] if slurm.in_job() else local_processes(words, gpus)
            measured = collect(processes, limits.seconds + GRACE_SECONDS, stop)
        except slurm.SlurmError as error:
            return Verdict(), [f"preflight: {error}; training starts without it"]
        if stop():
            return Verdict(), []
        seconds = time.monotonic() - begun
        if not measured:
            return Verdict(), [f"preflight: no process answered within {seconds:.0f} s; training starts without it"]
        findings = judge(measured, Expected(self._nodes, gpus, limits))
        found = verdict(findings, len(self._nodes), excluded, limits)
        write_result(self._result, measured, findings, found, seconds, nodes=list(self._nodes))
        lines = [f"preflight: {finding}" for finding in findings]
        lines += [f"preflight: {found.reason}"] if found.reason else []
        return found, lines
