"""Covers every reader on files that were valid: a mutation is read, or refused as one line; never a traceback, hang or crash.

The user pain it stands for: "a broken file ended the job with a stack trace of somebody else's library".
"""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mose.command import LONGEST_MESSAGE, one_line
from mose.errors import MoseError
from tests.fuzzed_files import Case, cases, mutated

NAMES = (
    "manifest",
    "tar",
    "npy",
    "task marker",
    "checkpoint manifest",
    "config.json",
    "safetensors",
    "weight map",
    "tokenizer.json",
    "sentencepiece",
    "yaml",
    "parquet",
    "lineage",
)
MUTATIONS = 10_000
SECONDS = 1.0


@pytest.fixture(scope="module")
def by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {case.name: case for case in cases(tmp_path_factory.mktemp("fuzz"))}


def fuzz(case: Case, examples: int) -> dict[str, float]:
    """Read `examples` mutations; how many were read and refused, and the longest time of one in seconds."""
    valid = case.path.read_bytes()
    counts = {"mutations": 0, "read": 0, "refused": 0, "slowest_seconds": 0.0}

    @settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(st.data())
    def one(data: st.DataObject) -> None:
        case.path.write_bytes(data.draw(mutated(valid)))
        # Time of this process: others may keep the processor busy.
        began = time.process_time()
        try:
            case.read()
            counts["read"] += 1
        except (MoseError, OSError) as error:
            # A command prints both as one line.
            counts["refused"] += 1
            assert "\n" not in str(error)
            assert len(one_line(error)) <= LONGEST_MESSAGE
        counts["slowest_seconds"] = max(counts["slowest_seconds"], time.process_time() - began)
        counts["mutations"] += 1

    try:
        case.read()
        one()
    finally:
        case.path.write_bytes(valid)
    return counts


def test_every_case_is_fuzzed(by_name: dict[str, Case]) -> None:
    assert tuple(by_name) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_mutations_are_read_or_refused_in_one_line(name: str, by_name: dict[str, Case]) -> None:
    counts = fuzz(by_name[name], 40)
    assert counts["read"] + counts["refused"] == counts["mutations"]


@pytest.mark.soak
def test_ten_thousand_mutations(by_name: dict[str, Case]) -> None:
    """With FUZZ_RESULTS=FILE, the counts are written there."""
    counts: dict[str, dict[str, float]] = {}
    for name, case in by_name.items():
        counts[name] = fuzz(case, -(-MUTATIONS // len(NAMES)))
        if target := os.environ.get("FUZZ_RESULTS"):
            Path(target).write_text(json.dumps(counts, indent=1) + "\n")
    assert sum(found["mutations"] for found in counts.values()) >= MUTATIONS
    assert max(found["slowest_seconds"] for found in counts.values()) < SECONDS
