"""What one process measured of its device and node: lines of output, each printed as soon as its fact is known."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mose.files.json_file import parse_json
from mose.files.records import from_plain

# A line starts with it, so that what libraries print on the same stream is told apart. Each line stays below 1,000 characters:
# slurmstepd sends longer ones in parts, between which lines of other tasks may come.
MARK = "mose-preflight "
# What a process is at, in order; the last one that it printed says how far it came.
BEGIN, DISK, IMPORT, DEVICE, PRODUCTS, MEET, CLOCK, IN_NODE, ACROSS, DONE = STAGES = (
    "begin",
    "disk space",
    "import of torch",
    "device",
    "matrix products",
    "meeting the other nodes",
    "clock",
    "all-reduce in the node",
    "all-reduce across nodes",
    "done",
)


@dataclass(frozen=True)
class Link:
    """The all-reduce among the devices of two nodes."""

    rank: int
    """The first rank of the other node."""
    bytes_per_second: float
    """Bus bandwidth: bytes per second times 2 (ranks - 1) / ranks, as nccl-tests reports it."""
    is_right: bool


@dataclass(frozen=True)
class Measured:
    """The facts of one process; None or empty where it did not come so far."""

    rank: int
    node: str
    local_rank: int = 0
    stage: str = BEGIN
    fault: str = ""
    """What went wrong before it met the others: stage and error, in one line."""
    error: str = ""
    """What went wrong together with the others, which need not be its own fault."""
    run_free: int | None = None
    """Free bytes of the run directory; None where it cannot be written."""
    temporary_free: int | None = None
    devices: int | None = None
    """GPUs that the process sees."""
    identity: str = ""
    """UUID of its GPU: two processes of a node must not share one."""
    kind: str = ""
    """What must be equal for two devices to compare: model of the device, version of torch, threads."""
    memory: int = 0
    """Bytes of memory of the device."""
    memory_free: int = 0
    clock: tuple[float, ...] = ()
    """The node's clock, in seconds since 1970, at moments that all nodes share."""
    products: int = 0
    """How many times the same matrix product was computed."""
    differing: int = 0
    """How many of them differed from the first in any bit."""
    digest: str = ""
    """Of all bits of the first product."""
    error_ratio: float | None = None
    """Error of the product against the one in float64, as a share of what its number type allows."""
    flops: float | None = None
    """Floating-point operations per second of the matrix products."""
    in_node: float | None = None
    """Bus bandwidth of the all-reduce among the devices of the node, in bytes per second."""
    in_node_right: bool = True
    everywhere: float | None = None
    """The same among all devices of the job."""
    links: tuple[Link, ...] = ()

    @property
    def place(self) -> int:
        """How far it came, as an index of `STAGES`."""
        return STAGES.index(self.stage) if self.stage in STAGES else 0


def to_line(facts: dict[str, Any]) -> str:
    """One line of output; `facts` are fields of `Measured`, its rank and node among them."""
    return MARK + json.dumps(facts, separators=(",", ":"))


def read_lines(lines: Iterable[str]) -> list[Measured]:
    """What all processes printed, by rank; a later line adds to an earlier one, and what is no fact is passed over."""
    found: dict[int, Measured] = {}
    for line in lines:
        if not line.startswith(MARK):
            continue
        with contextlib.suppress(ValueError):
            facts = parse_json(line[len(MARK) :].encode("utf-8"))
            one = from_plain(Measured, facts)
            before = found.get(one.rank, one)
            links = before.links + one.links if before is not one else one.links
            found[one.rank] = dataclasses.replace(before, **{name: getattr(one, name) for name in facts} | {"links": links})
    return [found[rank] for rank in sorted(found)]
