"""Reads the stacks that ranks wrote when a run hung, and names the rank that the others wait for."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# Written by `pretrain.monitoring.stacks`: a header, then one block per request.
_HEADER = re.compile(r"rank (\d+) of (\d+), host (\S+), process (\d+)")
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>\S+)', re.MULTILINE)
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x", re.MULTILINE)
_OURS = re.compile(r"(?:^|/)((?:pretrain|finetune|mose)/[\w/]+\.py)$")
_NAMED = 8


@dataclass(frozen=True)
class RankStack:
    """Where a rank is: the innermost function of ours in its main thread, or nothing if it wrote no stack."""

    rank: int
    host: str
    place: str


def read_stacks(folder: Path) -> list[RankStack]:
    """The last stack of every rank, by rank; files that are no stacks are left out."""
    found = []
    for path in sorted(folder.glob("rank-*.txt")):
        text = path.read_text("utf-8", errors="replace")
        if header := _HEADER.match(text):
            found.append(RankStack(int(header.group(1)), header.group(3), _place(text[header.end() :])))
    return sorted(found, key=lambda one: one.rank)


def _place(text: str) -> str:
    """The innermost frame of ours, of the main thread: faulthandler writes it last, or marks it as the current one."""
    threads = _THREAD.split(text)[1:]
    for thread in reversed(threads):
        for frame in _FRAME.finditer(thread):
            # faulthandler writes the innermost frame first.
            if ours := _OURS.search(frame.group("file")):
                return f"{ours.group(1)}:{frame.group('line')} {frame.group('name')}"
    return "no frame of ours" if threads else ""


def explain_stacks(stacks: list[RankStack]) -> str:
    """One sentence: which ranks stand elsewhere than most, or wrote no stack; every place, where none is that of most."""
    if not stacks:
        return "no rank wrote a stack"
    silent = [one for one in stacks if not one.place]
    places = Counter(one.place for one in stacks if one.place)
    if not places:
        return f"none of {len(stacks)} ranks wrote a stack"
    (common, many), *rest_of_places = places.most_common()
    if rest_of_places and rest_of_places[0][1] == many:
        # Neither place is that of most: "the others" would point at one side by chance.
        common = ""
    others = [one for one in stacks if one.place and one.place != common]
    parts = [f"{_ranks(silent)} wrote no stack: stopped, or inside the kernel"] if silent else []
    parts += [f"{_ranks([one])} at {one.place}" for one in others[:_NAMED]]
    if not common:
        more = len(others) - _NAMED
        return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")
    rest = "the others at" if parts else f"all {len(stacks)} ranks at"
    return "; ".join([*parts, f"{rest} {common}"])


def suspects(stacks: list[RankStack]) -> list[RankStack]:
    """Ranks without a stack, or else those that stand elsewhere than most; none where all stand at the same place."""
    silent = [one for one in stacks if not one.place]
    if silent:
        return silent if len(silent) < len(stacks) else []
    places = Counter(one.place for one in stacks)
    if len(places) < 2:
        return []
    (common, many), (_, next_many) = places.most_common(2)
    return [one for one in stacks if one.place != common] if many > next_many else []


def _ranks(stacks: list[RankStack]) -> str:
    names = [f"rank {one.rank} ({one.host})" for one in stacks[:_NAMED]]
    more = len(stacks) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
