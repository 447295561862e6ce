"""The phases of a deduplication, their files and their markers: `OUTPUT/phases/PHASE/tasks/task-N.json`, written last."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dedup.config import DedupConfig, content_fields
from data_prep.dedup.inputs import Plan
from data_prep.dedup.storage.documents import Numbering
from data_prep.dedup.storage.segment_file import SegmentFile
from data_prep.dedup.storage.text_store import TextStores
from data_prep.execution.markers import in_threads
from data_prep.execution.task_files import array_specification
from data_prep.pipeline.task_marker import marker_path, read_record
from mose.config import fingerprint
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.files.records import from_plain
from mose.files.storage import storage_path

SIGNATURES, BANDS, VERIFY, GROUPS, CUT = PHASES = ("signatures", "bands", "verify", "groups", "cut")
FORMAT = 2
"""Version of the files that the phases leave for each other; a run that an earlier version began is refused."""


@dataclass(frozen=True)
class PhaseMarker:
    """A finished task of a phase."""

    task: int
    fingerprint: str
    """Of the settings and inputs of the run."""
    counts: dict[str, int]
    segments: list[int] = field(default_factory=list)
    """Lengths of the segments of the task's file of pairs."""
    files: dict[str, int] = field(default_factory=dict)
    """Size of each file in bytes, by its path in the output folder."""


@dataclass(frozen=True)
class Run:
    """One deduplication: what every task of every phase needs to know."""

    config: DedupConfig
    fingerprint: str

    @property
    def output(self) -> Path:
        """The output folder."""
        return storage_path(self.config.output)

    def folder(self, phase: str) -> Path:
        """The folder of a phase."""
        return self.output / "phases" / phase

    def part(self, phase: str, task: int, kind: str) -> Path:
        """A file that a task of a phase leaves for later phases."""
        return self.folder(phase) / f"part-{task:06d}.{kind}"

    def num_tasks(self, phase: str) -> int:
        """Tasks of a phase; all pairs are grouped in one task."""
        return 1 if phase == GROUPS else self.config.num_tasks

    def marker(self, phase: str, task: int) -> PhaseMarker | None:
        """The marker of a task if it is finished and its files have their sizes, else None.

        Raises:
            MoseError: the marker cannot be read, or is of another run.
        """
        path = marker_path(self.folder(phase), task)
        found = read_record(path, _marker_of, "not a marker of a finished task", "remove it, and its task is run again")
        if found is None:
            return None
        if found.fingerprint != self.fingerprint:
            raise MoseError(f"{path}: is of another run ({found.fingerprint}, now {self.fingerprint}); expected another output")
        whole = all((file := self.output / name).is_file() and file.stat().st_size == size for name, size in found.files.items())
        return found if whole else None

    def finish(self, phase: str, task: int, counts: dict[str, int], files: list[Path], segments: list[int]) -> None:
        """Write the marker of a task."""
        sizes = {str(file.relative_to(self.output)): file.stat().st_size for file in files}
        marker = PhaseMarker(task, self.fingerprint, counts, segments, sizes)
        write_json(marker_path(self.folder(phase), task), dataclasses.asdict(marker))

    def missing(self, phase: str) -> list[int]:
        """The tasks of a phase that have not finished."""
        tasks = range(self.num_tasks(phase))
        return [task for task, found in zip(tasks, in_threads(lambda t: self.marker(phase, t), tasks), strict=True) if not found]

    def markers(self, phase: str) -> list[PhaseMarker]:
        """The markers of all tasks of a phase.

        Raises:
            MoseError: tasks have not finished; the line names them in the format of SLURM's --array.
        """
        number = self.num_tasks(phase)
        found = list(in_threads(lambda task: self.marker(phase, task), range(number)))
        missing = [task for task, marker in enumerate(found) if marker is None]
        if missing:
            raise MoseError(
                f"{self.output}: {phase}: {len(missing)} of {number} tasks have not finished; run them first: "
                f"--phase {phase} --array={array_specification(missing)}"
            )
        return [marker for marker in found if marker is not None]

    def pairs(self, phase: str) -> list[SegmentFile]:
        """The pairs that the tasks of a finished phase wrote."""
        return [SegmentFile(self.part(phase, marker.task, "pairs"), marker.segments) for marker in self.markers(phase)]

    def numbering(self) -> Numbering:
        """How rows and documents are numbered; all signatures must be there."""
        rows = [marker.counts["rows"] for marker in self.markers(SIGNATURES)]
        return Numbering(self.config.num_columns, np.array(rows, np.int64))

    def texts(self) -> TextStores:
        """The texts of all documents."""
        tasks = range(self.config.num_tasks)
        return TextStores([(self.part(SIGNATURES, task, "texts"), self.part(SIGNATURES, task, "documents")) for task in tasks])


def run_of(config: DedupConfig, plan: Plan) -> Run:
    """The run of a config over its inputs."""
    return Run(config, f"{fingerprint([FORMAT, content_fields(config)])}-{plan.fingerprint}")


def _marker_of(values: Any) -> PhaseMarker:
    return from_plain(PhaseMarker, values)
