"""Draws the way of the data through the rooms as SVG, from the text below.

Run `python docs/images/data_way.py > docs/images/data_way.svg` after a change; `tests/test_docs.py` compares the two.
"""

import sys
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, MARGIN, NOTES_WIDTH = 1280, 20, 236
LEFT, RIGHT = MARGIN + NOTES_WIDTH + 10, WIDTH - MARGIN
BAND_HEIGHT, BOX_HEIGHT, BOX_GAP, FORMAT_HEIGHT, ROOM_FOR_ARROW = 104, 80, 24, 32, 26
INK, GREY, PAPER = "#1a202c", "#4a5568", "#fffbea"


@dataclass(frozen=True)
class Band:
    """A package: notes at the left, boxes (name, lines) at the right, joined by arrows if data flows through them."""

    name: str
    command: str
    notes: tuple[str, ...]
    boxes: tuple[tuple[str, ...], ...]
    fill: str
    line: str
    flows: bool = True


# From top to bottom: a text is a file format between two stages, a box whose name begins with "*" is a file.
WAY: tuple[Band | str, ...] = (
    "repositories: folders, git checkouts, installed packages, The Stack v2 (brought here by data_prep/sources/ingest)",
    Band(
        "data_prep",
        "mose-data pack",
        ("execution: once per task, with", "lease, heartbeat and marker", "tools: verify, stats, remove"),
        (
            ("sources", "each repository", "and its files"),
            ("filters", "licence, size, content;", "evaluation text"),
            ("tokenization", "text to tokens,", "tokens to chunks"),
            ("pipeline", "shuffle buffer over", "many repositories"),
            ("packing", "chunks to rows of one", "or two repositories"),
            ("pipeline", "rows shuffled and", "written to a tar"),
        ),
        "#e3eefa",
        "#2b6cb0",
    ),
    "data set: shard-000000.tar, index, lineage table, manifest.json, tokenizer",
    Band(
        "pretrain",
        "mose-pretrain train, export",
        ("train.py: the loop around step.py", "config: what a run is", "monitoring, analysis: its numbers"),
        (
            ("storage", "rows on disk, staged", "or read by ranges"),
            ("data", "order, balancing,", "masking, unpadding"),
            ("step.py", "counts, forward,", "backward, update"),
            ("model", "a state and a loss", "at every exit"),
            ("parallel", "DeepSpeed ZeRO,", "tensor parallelism"),
            ("checkpoints", "save, resume,", "merge, export"),
        ),
        "#fdeedd",
        "#c05621",
    ),
    "converted checkpoint: one Hugging Face folder, with every exit or a chosen one",
    Band(
        "finetune",
        "mose-finetune retrieval, evaluate",
        ("distributed: ranks of torchrun", "batches: rows without padding"),
        (
            ("retrieval", "contrastive loss on pairs,", "at every exit"),
            ("*fine-tuned folder", "opens in transformers and", "sentence-transformers"),
            ("evaluation", "one file per task;", "scores of every exit"),
            ("*evaluation.json", "and with the run's metrics", "report.txt, report.png"),
        ),
        "#e2f3e6",
        "#2f855a",
    ),
    Band(
        "mose",
        "no command",
        ("contracts that two stages share;", "imports none of them"),
        (
            ("files", "whole or not at all,", "disk or object store"),
            ("config", "dataclasses, YAML,", "command lines"),
            ("dataset", "rows, shards, index,", "manifest, pairs"),
            ("tokenizer", "sentencepiece and", "tokenizer.json"),
            ("model", "encoder, sizes,", "sharding table"),
            ("checkpoint", "the exported folder,", "exit selection"),
        ),
        "#edf0f4",
        "#718096",
        flows=False,
    ),
    Band(
        "cluster",
        "mose-cluster launch",
        ("SLURM scripts; knows no tensors",),
        (
            ("launch pack", "a job array, one element per task;", "then mose-data finish"),
            ("launch pretrain", "one job; queued again until", "the last checkpoint exists"),
        ),
        "#f3ebf9",
        "#805ad5",
        flows=False,
    ),
)


def picture() -> str:
    """The picture as SVG."""
    parts, arrows, y = list[str](), list[str](), MARGIN
    for number, entry in enumerate(WAY):
        if isinstance(entry, str):
            parts.append(_format(entry, y))
            y += FORMAT_HEIGHT + ROOM_FOR_ARROW
            arrows.append(_arrow(_centers(WAY[number + 1])[0], y - ROOM_FOR_ARROW, y + _above_box()))
        else:
            parts += _band(entry, y)
            y += BAND_HEIGHT + ROOM_FOR_ARROW
            if isinstance(WAY[min(number + 1, len(WAY) - 1)], str):
                arrows.append(_arrow(_centers(entry)[-1], y - ROOM_FOR_ARROW - _above_box(), y))
    height = y - ROOM_FOR_ARROW + MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif">'
    marker = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{GREY}"/></marker></defs>'
    )
    return "\n".join([head, marker, f'<rect width="{WIDTH}" height="{height}" fill="white"/>', *parts, *arrows, "</svg>"]) + "\n"


def _above_box() -> int:
    return (BAND_HEIGHT - BOX_HEIGHT) // 2


def _centers(entry: Band | str) -> list[float]:
    assert isinstance(entry, Band), "a file format stands between two packages"
    width = _box_width(entry)
    return [LEFT + index * (width + BOX_GAP) + width / 2 for index in range(len(entry.boxes))]


def _box_width(band: Band) -> float:
    return (RIGHT - 12 - LEFT - BOX_GAP * (len(band.boxes) - 1)) / len(band.boxes)


def _band(band: Band, y: int) -> list[str]:
    parts = [_rect(MARGIN, y, RIGHT - MARGIN, BAND_HEIGHT, band.fill, band.line, radius=8)]
    parts.append(_text(MARGIN + 14, y + 24, band.name, 17, band.line, weight="bold", anchor="start"))
    parts.append(_text(MARGIN + 14, y + 41, band.command, 12, INK, anchor="start"))
    parts += [_text(MARGIN + 14, y + 58 + 14 * i, note, 11.5, GREY, anchor="start") for i, note in enumerate(band.notes)]
    width, top = _box_width(band), y + _above_box()
    for number, (center, (name, *lines)) in enumerate(zip(_centers(band), band.boxes, strict=True)):
        is_file = name.startswith("*")
        parts.append(
            _rect(center - width / 2, top, width, BOX_HEIGHT, PAPER if is_file else "white", band.line, 16 if is_file else 5)
        )
        parts.append(_text(center, top + 26, name.removeprefix("*"), 14.5, INK, weight="bold"))
        parts += [_text(center, top + 46 + 16 * i, line, 11.5, GREY) for i, line in enumerate(lines)]
        if band.flows and number:
            start = center - width / 2 - BOX_GAP
            parts.append(_line(start, top + BOX_HEIGHT / 2, start + BOX_GAP, top + BOX_HEIGHT / 2))
    return parts


def _format(text: str, y: int) -> str:
    box = _rect(LEFT, y, RIGHT - 12 - LEFT, FORMAT_HEIGHT, PAPER, GREY, radius=16)
    return box + _text((LEFT + RIGHT - 12) / 2, y + 21, text, 13, INK)


def _arrow(x: float, start: float, end: float) -> str:
    return _line(x, start, x, end)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{GREY}" stroke-width="1.6" marker-end="url(#tip)"/>'


def _rect(x: float, y: float, width: float, height: float, fill: str, line: str, radius: int) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" fill="{fill}" stroke="{line}" '
        'stroke-width="1.2"/>'
    )


def _text(x: float, y: float, text: str, size: float, color: str, weight: str = "normal", anchor: str = "middle") -> str:
    place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{color}"'
    return f'<text {place} font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    sys.stdout.write(picture())
