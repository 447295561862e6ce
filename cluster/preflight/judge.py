"""What the measurements of all nodes mean: findings, the nodes to leave out, and whether the job starts; pure functions."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.jobs.config import PreflightConfig
from cluster.preflight.records import DONE, MEET, STAGES, Measured

GIB = 1 << 30
# A GPU of which another process holds a part looks like a smaller one; the driver's own share is some hundred MiB.
_FREE_SHARE = 0.9
_NAMED = 8


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    node: str
    """The node that it names; empty where the measurements do not say which node is to blame."""
    message: str
    is_slow: bool = False
    """Whether the node works, but slower than the others; otherwise it is broken."""

    def __str__(self) -> str:
        return f"{self.node}: {self.message}" if self.node else self.message


@dataclass(frozen=True)
class Verdict:
    """`exclude`: the job is queued again without these nodes. `ends`: it ends. Neither: training starts."""

    exclude: tuple[str, ...] = ()
    ends: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Expected:
    """What the job asked for."""

    nodes: tuple[str, ...]
    """Their names; empty where they are not known beforehand."""
    gpus_per_node: int
    limits: PreflightConfig

    @property
    def ranks_per_node(self) -> int:
        """Processes per node: one per GPU, or one where there is none."""
        return max(1, self.gpus_per_node)


def judge(measured: Sequence[Measured], expected: Expected) -> list[Finding]:
    """Everything that is not as it should be, broken nodes first. Without a measurement nothing is known of any node."""
    if not measured:
        return []
    limits = expected.limits
    silent = {finding.node: finding for finding in _silent(measured, expected)}
    answered = [one for one in measured if one.node not in silent]
    findings = [
        *silent.values(),
        *_devices(answered, expected),
        *_space(answered, limits),
        *_clocks(answered, limits),
        *_products(answered),
        *_sums(answered),
        # Those that wait for a silent node have nothing else to say.
        *([] if silent else _stuck(answered, limits)),
        *_slow_devices(answered, limits.slow_fraction),
        *_slow_in_node(answered, limits.slow_fraction),
        *_slow_links(answered, limits.slow_fraction),
    ]
    return sorted(dict.fromkeys(findings), key=lambda finding: (finding.is_slow, not finding.node))


def verdict(findings: Sequence[Finding], nodes: int, excluded: Sequence[str], limits: PreflightConfig) -> Verdict:
    """What follows from `findings` on `nodes` nodes, when preflights have excluded some before."""
    broken = {finding.node for finding in findings if finding.node and not finding.is_slow}
    named = tuple(sorted({finding.node for finding in findings if finding.node}))
    if 2 * len(broken) > nodes > 1:
        # Other nodes would fail alike: what the job asks for is wrong, or what all nodes share.
        return Verdict(ends=True, reason=f"{len(broken)} of {nodes} nodes fail the preflight: not a fault of single nodes")
    if len({*excluded, *named}) > limits.max_excluded and named:
        many = f"{len({*excluded, *named})} nodes failed preflights, preflight.max_excluded is {limits.max_excluded}"
        return Verdict(ends=True, reason=many) if broken else Verdict(reason=f"{many}: training starts with slow nodes")
    return Verdict(exclude=named)


def _nodes(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for one in measured:
        found.setdefault(one.node, []).append(one)
    return found


def _silent(measured: Sequence[Measured], expected: Expected) -> Iterator[Finding]:
    """Nodes of which a process did not finish what it measures by itself; it ends before processes meet."""
    by_node, met = _nodes(measured), STAGES.index(MEET)
    for node in expected.nodes or by_node:
        ranks = by_node.get(node, [])
        behind = [one for one in ranks if one.place < met]
        missing = expected.ranks_per_node - len(ranks)
        if not behind and missing <= 0:
            continue
        at = f"rank {behind[0].rank} is at {behind[0].stage!r}" if behind else ""
        none = f"{missing} of {expected.ranks_per_node} processes printed nothing" if missing > 0 else ""
        why = ", ".join(part for part in (none, at) if part)
        yield Finding(node, f"did not answer within {expected.limits.seconds:g} s: {why}")


def _devices(measured: Sequence[Measured], expected: Expected) -> Iterator[Finding]:
    """Number of devices, their memory, and what they report themselves."""
    for one in measured:
        if one.fault:
            yield Finding(one.node, f"rank {one.rank}, {one.fault}")
    if not expected.gpus_per_node:
        return
    for node, ranks in _nodes(measured).items():
        found = len({one.identity for one in ranks if one.identity})
        if found < expected.gpus_per_node:
            yield Finding(node, f"{found} devices, expected {expected.gpus_per_node}")
    need = expected.limits.device_gib * GIB
    for one, others in _with_others([one for one in measured if one.memory]):
        median = statistics.median(other.memory for other in others) if others else one.memory
        if one.memory_free < max(need, _FREE_SHARE * median):
            wanted = f"expected {max(need, _FREE_SHARE * median) / GIB:.1f}"
            yield Finding(one.node, f"{_device(one)}: {one.memory_free / GIB:.1f} of {one.memory / GIB:.1f} GiB free, {wanted}")


def _device(one: Measured) -> str:
    return f"device {one.local_rank}"


def _with_others(measured: Sequence[Measured]) -> Iterator[tuple[Measured, list[Measured]]]:
    """Each device with those that it compares to: of its kind on other nodes, or on its own node where there are none."""
    kinds: dict[str, list[Measured]] = {}
    for one in measured:
        kinds.setdefault(one.kind, []).append(one)
    for one in measured:
        elsewhere = [other for other in kinds[one.kind] if other.node != one.node]
        yield one, elsewhere or [other for other in kinds[one.kind] if other is not one]


def _space(measured: Sequence[Measured], limits: PreflightConfig) -> Iterator[Finding]:
    first = [one for one in measured if not one.local_rank]
    for name, field, gib in (
        ("run directory", "run_free", limits.run_gib),
        ("temporary folder", "temporary_free", limits.temporary_gib),
    ):
        short = [one for one in first if getattr(one, field) is None or getattr(one, field) < gib * GIB]
        # All nodes share the run directory: other nodes would not have more of it.
        is_shared = field == "run_free" and len(short) == len(first)
        for one in short[:1] if is_shared else short:
            free = getattr(one, field)
            little = "cannot be written" if free is None else f"has {free / GIB:.1f} GiB free, expected {gib:g}"
            yield Finding("" if is_shared else one.node, f"the {name} {little}")


def _clocks(measured: Sequence[Measured], limits: PreflightConfig) -> Iterator[Finding]:
    """Clocks off the median. The smallest difference of all rounds counts: a busy node reads its clock late, never early."""
    read = [one for one in measured if one.clock]
    rounds = min((len(one.clock) for one in read), default=0)
    if len(read) < 2 or not rounds:
        return
    most = f"expected at most {limits.clock_seconds:g}"
    if len(read) == 2:
        # Which of two clocks is off, nobody can say.
        a, b = read
        apart = min((a.clock[number] - b.clock[number] for number in range(rounds)), key=abs)
        if abs(apart) > limits.clock_seconds:
            yield Finding("", f"the clocks of {a.node} and {b.node} are {abs(apart):.1f} s apart, {most}")
        return
    medians = [statistics.median(one.clock[number] for one in read) for number in range(rounds)]
    for one in read:
        off = min((one.clock[number] - medians[number] for number in range(rounds)), key=abs)
        if abs(off) > limits.clock_seconds:
            yield Finding(one.node, f"clock {abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} the median, {most}")


def _products(measured: Sequence[Measured]) -> Iterator[Finding]:
    """Products that are far from the right value, or differ in any bit from each other or from those of most other devices."""
    kinds: dict[str, list[Measured]] = {}
    for one in measured:
        if one.differing:
            yield Finding(one.node, f"{_device(one)}: {one.differing} of {one.products} runs of one matrix product differ")
        if one.error_ratio is not None and not one.error_ratio <= 1:
            yield Finding(one.node, f"{_device(one)}: wrong matrix product, error {one.error_ratio:.3g} times what is allowed")
        if one.digest:
            kinds.setdefault(one.kind, []).append(one)
    for kind, devices in kinds.items():
        digests = Counter(one.digest for one in devices)
        common, count = digests.most_common(1)[0]
        others = [one for one in devices if one.digest != common]
        if not others:
            continue
        if 2 * count <= len(devices):
            names = ", ".join(dict.fromkeys(one.node for one in devices[:_NAMED]))
            yield Finding("", f"matrix products of {len(devices)} devices of {kind} disagree, none has most on its side: {names}")
            continue
        for one in others:
            yield Finding(
                one.node, f"{_device(one)}: matrix product differs from that of {count} of {len(devices)} devices of {kind}"
            )


def _sums(measured: Sequence[Measured]) -> Iterator[Finding]:
    """All-reduces whose sum is wrong; of a wrong link, the node whose other link is wrong too."""
    for one in measured:
        if not one.in_node_right:
            yield Finding(one.node, "an all-reduce in the node gives a wrong sum")
    links = _links(measured)
    yield from _blame(links, {pair for pair, (_, right) in links.items() if not right}, "gives a wrong sum", is_slow=False)


def _stuck(measured: Sequence[Measured], limits: PreflightConfig) -> Iterator[Finding]:
    """Processes that measured themselves, and did not come through what they do together with others."""
    unfinished = [one for one in measured if one.stage != DONE]
    if not unfinished:
        return
    at = Counter(one.stage for one in measured)
    first = min(unfinished, key=lambda one: one.place)
    behind = {one.node for one in unfinished if one.place == first.place}
    # If most are at the same stage, it is not they who keep the others waiting.
    if 2 * at[first.stage] < len(measured):
        for node in sorted(behind):
            yield Finding(node, f"did not come past {first.stage!r} within {limits.seconds:g} s")
        return
    error = f": {first.error}" if first.error else ""
    yield Finding("", f"{len(unfinished)} of {len(measured)} processes did not come past {first.stage!r} in time{error}")


def _slow_devices(measured: Sequence[Measured], fraction: float) -> Iterator[Finding]:
    for one, others in _with_others([one for one in measured if one.flops is not None]):
        if not others or one.flops is None:
            continue
        median = statistics.median(other.flops or 0.0 for other in others)
        if one.flops < fraction * median:
            rates = f"{_rate(one.flops, 'FLOP/s')}, {one.flops / median:.0%} of the others' median of {_rate(median, 'FLOP/s')}"
            yield Finding(one.node, f"{_device(one)}: matrix products at {rates}", is_slow=True)


def _slow_in_node(measured: Sequence[Measured], fraction: float) -> Iterator[Finding]:
    for node, ranks in _nodes(measured).items():
        mine = [one.in_node for one in ranks if one.in_node is not None]
        others = [one.in_node for one in measured if one.in_node is not None and one.node != node]
        if mine and others and min(mine) < fraction * (median := statistics.median(others)):
            rates = f"{_rate(min(mine), 'B/s')}, {min(mine) / median:.0%} of the others' median of {_rate(median, 'B/s')}"
            yield Finding(node, f"all-reduce in the node at {rates}", is_slow=True)


def _links(measured: Sequence[Measured]) -> dict[tuple[str, str], tuple[float, bool]]:
    """Rate of the all-reduce between each two neighbours, the lower of what both measured, and whether both sums were right."""
    names = {one.rank: one.node for one in measured}
    found: dict[tuple[str, str], tuple[float, bool]] = {}
    for one in measured:
        for link in one.links:
            if link.rank not in names:
                continue
            a, b = sorted((one.node, names[link.rank]))
            rate, right = found.get((a, b), (link.bytes_per_second, True))
            found[a, b] = (min(rate, link.bytes_per_second), right and link.is_right)
    return found


def _slow_links(measured: Sequence[Measured], fraction: float) -> Iterator[Finding]:
    links = _links(measured)
    if len(links) < 3:
        return
    # Of each node its better link: of three nodes, a slow one makes two of all three links slow.
    best: dict[str, float] = {}
    for (a, b), (rate, _) in links.items():
        best |= {node: max(rate, best.get(node, 0.0)) for node in (a, b)}
    median = statistics.median(best.values())
    slow = {pair for pair, (rate, _) in links.items() if rate < fraction * median}
    yield from _blame(links, slow, f"is slow: the median is {_rate(median, 'B/s')}", is_slow=True)


def _blame(
    links: Mapping[tuple[str, str], tuple[float, bool]], bad: set[tuple[str, str]], what: str, *, is_slow: bool
) -> Iterator[Finding]:
    """Name the nodes all of whose links are bad; a bad link that none of them explains names no node.

    Every node has a link to each of its two neighbours on a ring, so that a healthy neighbour of a bad node keeps one good link.
    Between two bad nodes a healthy one is named with them: it costs one node too many, and is measured again in another job.
    """
    mine: dict[str, list[tuple[str, str]]] = {}
    for pair in links:
        for node in pair:
            mine.setdefault(node, []).append(pair)
    guilty = {node for node, pairs in mine.items() if len(pairs) > 1 and bad.issuperset(pairs)}
    for node in sorted(guilty):
        rate = max(links[pair][0] for pair in mine[node])
        yield Finding(node, f"all-reduce with both neighbours, at most {_rate(rate, 'B/s')}, {what}", is_slow=is_slow)
    for a, b in sorted(bad):
        if not guilty & {a, b}:
            yield Finding("", f"all-reduce of {a} and {b} at {_rate(links[a, b][0], 'B/s')} {what}", is_slow=is_slow)


def _rate(value: float, unit: str) -> str:
    """A rate with three digits and a prefix, e.g. `25.2 GB/s`."""
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
