"""The sample of a dry run: which files are read, how many bytes each of them stands for, and the error that this leaves.

Files of one size are sampled together. Copies of a file have the same size, so all of them are in the sample or none is, and the
duplicates that the sample shows are those of the whole, although nothing was read to find them. Where only whole repositories
can be read, each repository is drawn on its own.

Letters: U units (files of one size, or one repository).
"""

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mose.seeding import derive_key

_CONFIDENCE = 1.96
_BINS_PER_OCTAVE = 2


@dataclass
class Unit:
    """Files that are drawn together."""

    bin: int
    """Units of similar sizes share a bin, and are compared with each other only."""
    bytes: int = 0
    tokens: float = 0.0


@dataclass(frozen=True)
class SizeSample:
    """The sizes whose files are read, and the bytes for which a byte of each bin of sizes stands."""

    sizes: frozenset[int]
    scales: dict[int, float] = field(default_factory=dict)

    def __contains__(self, size: int) -> bool:
        return size in self.sizes

    def scale(self, size: int) -> float:
        """Bytes of all files of the bin of `size` per byte that is read of it."""
        return self.scales[size_bin(size)]


def size_bin(size: int) -> int:
    """The bin of a size: two per doubling."""
    return math.floor(_BINS_PER_OCTAVE * math.log2(max(1, size)))


def sample_sizes(files_of_size: dict[int, int], sample_bytes: int, seed: int) -> SizeSample:
    """Draw sizes at random until about `sample_bytes` would be read, the same share of each bin; all if there is no more."""
    total = sum(size * files for size, files in files_of_size.items())
    share = min(1.0, sample_bytes / max(1, total))
    bins: dict[int, list[int]] = defaultdict(list)
    for size in sorted(files_of_size, key=lambda size: derive_key(seed, "dry run", size)):
        bins[size_bin(size)].append(size)
    chosen: set[int] = set()
    scales: dict[int, float] = {}
    for number, sizes in bins.items():
        whole = sum(size * files_of_size[size] for size in sizes)
        read, units = 0, 0
        for size in sizes:
            # Two units at least, so that the error of the bin is known.
            if read >= share * whole and units >= 2:
                break
            chosen.add(size)
            read, units = read + size * files_of_size[size], units + 1
        scales[number] = whole / read if read else 1.0
    return SizeSample(frozenset(chosen), scales)


def margin(units: Iterable[Unit], scales: dict[int, float]) -> float:
    """Half of the 95 % interval of the tokens, as a share of them: a ratio estimate by bins (Cochran 1977, 6.4 and 6.11)."""
    bins: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        bins[unit.bin].append(unit)
    total = sum(scales[number] * unit.tokens for number, found in bins.items() for unit in found)
    variance = 0.0
    for number, found in bins.items():
        scale = scales[number]
        ratio = sum(unit.tokens for unit in found) / max(1, sum(unit.bytes for unit in found))
        residuals = sum((unit.tokens - ratio * unit.bytes) ** 2 for unit in found)
        # Of a single unit the spread is not known; its whole content is taken for it.
        spread = residuals * len(found) / (len(found) - 1) if len(found) > 1 else found[0].tokens ** 2
        variance += max(0.0, 1 - 1 / scale) * scale**2 * spread
    return _CONFIDENCE * math.sqrt(variance) / total if total else 1.0


def tokens_within(tokens_R: list[float], budget: float) -> float:
    """Tokens of the repositories of a task, in their order, up to and with the one that exceeds `budget`."""
    sums = [0.0]
    for tokens in tokens_R:
        sums.append(sums[-1] + tokens)
    return sums[min(len(tokens_R), bisect.bisect_left(sums, budget))]


def expected_overshoot(tokens_R: list[float]) -> float:
    """Mean tokens by which the repository that exceeds a budget exceeds it, if repositories come in random order.

    A point of the text is more likely to be inside a large repository, and is in its middle on average.
    """
    total = sum(tokens_R)
    return sum(tokens**2 for tokens in tokens_R) / (2 * total) if total else 0.0
