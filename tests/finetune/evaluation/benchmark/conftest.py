"""Made for the benchmark tests: tiny files of every task."""

import json
from typing import Any

import pytest

from tests.finetune.conftest import make_pairs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Tiny files of every task."""
    folder = tmp_path_factory.mktemp("files")

    def lines(name: str, rows: list[Any]) -> str:
        (folder / name).write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return str(folder / name)

    pairs = make_pairs(24)
    search = [
        {"repo": f"r{i % 6}", "path": "a", "language": ("python", "go")[i % 2], "partition": "test"}
        | {"docstring": pair.nl, "code": pair.code_a}
        for i, pair in enumerate(pairs)
    ]
    clones = [f"{i}\t{i + 1}\t{i % 2}" for i in range(20)]
    return {
        "codesearchnet": [lines("search.jsonl", search)],
        "code_translation": [lines("t.jsonl", [{"id": f"test-{i}", "java": p.nl, "cs": p.code_a} for i, p in enumerate(pairs)])],
        "poj104": [lines("p.jsonl", [{"label": str(i % 6), "index": str(i), "code": p.code_a} for i, p in enumerate(pairs)])],
        "bigclonebench": [
            lines("f.jsonl", [{"idx": str(i), "func": pair.code_a} for i, pair in enumerate(pairs)]),
            lines("tune.txt", clones[:10]),
            lines("score.txt", clones[10:]),
        ],
        "judged_search:CoSQA": [
            lines("c.jsonl", [{"_id": f"d{i}", "text": pair.code_a} for i, pair in enumerate(pairs)]),
            lines("q.jsonl", [{"_id": f"q{i}", "text": pair.nl} for i, pair in enumerate(pairs)]),
            lines("qrels.tsv", ["query-id\tcorpus-id\tscore", *[f"q{i}\td{i}\t1" for i in range(24)]]),
        ],
    }
