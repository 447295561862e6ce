"""The CPU of a run from that of its packed sample: each part is scaled by what it grows with.

What is done once or for each task is not scaled, nor is the opening of a repository (the walk through a folder, git's
processes, licence files), which is as long for a sample of its files. Reading grows with the files of each bin of sizes, packing
with tokens.
"""

import resource
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data_prep.pipeline.estimate.sample import size_bin
from data_prep.sources.repositories import RepositoryRef, SourceFile
from data_prep.sources.stack_v2.rows import KIND as ROWS_KIND


def cpu_seconds() -> float:
    """CPU of this process and of the processes that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _ended_processes() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class PassCost:
    """CPU seconds of one pass over the sample, and those that a pass over everything would take."""

    def __init__(self) -> None:
        self._began = cpu_seconds()
        self.total = self.listing = self._listing_of_opened = 0.0
        self._openings: dict[str, float] = {}
        self._rows: set[str] = set()
        self._first_bytes: Counter[int] = Counter()
        """By bin of sizes, of the first file of each repository, which is read when the repository is opened."""
        self._first_bytes_of_rows = self._later_bytes = 0
        self._reading: defaultdict[int, float] = defaultdict(float)
        self._judging: defaultdict[int, float] = defaultdict(float)
        self._closing = 0.0

    def listed(self, seconds: float, *, is_opened: bool) -> None:
        """Count the listing of a repository, which a run does not need; `is_opened` if the sample has files of it."""
        self.listing += seconds
        self._listing_of_opened += seconds * is_opened

    def timed(self, ref: RepositoryRef, files: Iterator[SourceFile]) -> Iterator[SourceFile]:
        """The same files; counts the CPU of opening the repository, of each further file and of what the reader does with it."""
        began = cpu_seconds()
        file = next(files, None)
        self._openings[ref.name] = cpu_seconds() - began
        if ref.kind == ROWS_KIND:
            self._rows.add(ref.name)
        if file is None:
            return
        self._first_bytes[size_bin(file.num_bytes)] += file.num_bytes
        self._first_bytes_of_rows += file.num_bytes * (ref.kind == ROWS_KIND)
        while True:
            given, number = time.process_time(), size_bin(file.num_bytes)
            yield file
            asked = time.process_time()
            self._judging[number] += asked - given
            ended = _ended_processes()
            if (file := next(files, None)) is None:
                # Processes of git are counted when they end.
                self._closing += time.process_time() - asked + _ended_processes() - ended
                return
            self._reading[size_bin(file.num_bytes)] += time.process_time() - asked
            self._later_bytes += file.num_bytes

    def end(self) -> None:
        """The pass has ended."""
        self.total = cpu_seconds() - self._began

    @property
    def opening(self) -> float:
        """Of opening repositories."""
        return sum(self._openings.values())

    def opening_as_in(self, other: "PassCost") -> float:
        """Of opening the repositories that another pass opened."""
        return sum(self._openings.get(name, 0.0) for name in other._openings)

    @property
    def reading(self) -> float:
        """Of reading the sample."""
        return self.opening + sum(self._reading.values()) + self._closing

    @property
    def judging(self) -> float:
        """Of what the reader did between two files."""
        return sum(self._judging.values())

    def whole_reading(self, scales: Mapping[int, float], scale: float, *, with_judging: bool = False) -> float:
        """Of reading all files, without opening rows of parquet; `with_judging`, of what the reader did with them as well.

        `scales` are those of the bins of sizes, `scale` their mean.
        """
        rate = sum(self._reading.values()) / max(1, self._later_bytes)
        first = {number: rate * size for number, size in self._first_bytes.items()}
        opening = sum(seconds for name, seconds in self._openings.items() if name not in self._rows)
        opening -= rate * (self._first_bytes.total() - self._first_bytes_of_rows)
        # Repositories without a file in the sample are opened, too; how long that takes their listings tell.
        opening = max(0.0, opening) * (self.listing / self._listing_of_opened if self._listing_of_opened else scale)
        parts = [self._reading, first] + [self._judging] * with_judging
        return opening + self._closing * scale + sum(scales[number] * part[number] for part in parts for number in part)


@dataclass(frozen=True)
class RunCost:
    """CPU seconds of a whole run, by phase."""

    start: float
    """Of the start of this process, up to the list of all repositories, and of their states."""
    once: float
    """Of rules and libraries that the first file loads, and of the starts of workers."""
    tasks: float
    """Of what each task does without any file, such as loading the tokenizer."""
    searching: float
    """Of the passes that look for copies."""
    reading: float
    packing: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.start + self.once + self.tasks + self.searching + self.reading + self.packing
