"""Shows a preflight: a table with one line per node, its findings, and the JSON of its file."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.preflight.judge import GIB, Finding, Verdict
from cluster.preflight.records import Measured
from mose.files.atomic_file import write_json

_COLUMNS = ("node", "devices", "memory free", "run free", "tmp free", "products", "in node", "across", "finding")


def table(measured: Sequence[Measured], findings: Sequence[Finding]) -> list[str]:
    """Lines of a table, one per node; of its devices and links the slowest counts."""
    rows = [list(_COLUMNS)]
    for node in dict.fromkeys(one.node for one in measured):
        ranks = [one for one in measured if one.node == node]
        named = [finding.message for finding in findings if finding.node == node]
        rows.append(
            [
                node,
                f"{len(ranks)} x {_short(ranks[0].kind)}",
                _gib(min((one.memory_free for one in ranks), default=None)),
                _gib(ranks[0].run_free),
                _gib(ranks[0].temporary_free),
                _least([one.flops for one in ranks], 1e9, "GFLOP/s"),
                _least([one.in_node for one in ranks], 1e9, "GB/s"),
                _least([link.bytes_per_second for one in ranks for link in one.links], 1e9, "GB/s"),
                "; ".join(named) or "-",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _short(kind: str) -> str:
    return kind.partition(",")[0] or "?"


def _gib(value: int | None) -> str:
    return "?" if value is None else f"{value / GIB:,.1f} GiB"


def _least(values: Sequence[float | None], unit: float, name: str) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known) / unit:,.3g} {name}" if known else "-"


def write_result(
    path: Path, measured: Sequence[Measured], findings: Sequence[Finding], found: Verdict, seconds: float, **more: Any
) -> None:
    """Write a preflight's file, atomically."""
    facts = {
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(seconds, 2),
        **more,
        "verdict": dataclasses.asdict(found),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "measured": [dataclasses.asdict(one) for one in measured],
    }
    write_json(path, facts)
