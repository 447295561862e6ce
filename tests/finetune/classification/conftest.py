"""Made for the classification tests: pairs of snippets whose nouns are of one half of the list (class 1) or of both (class 0)."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from finetune.classification.examples import Example
from finetune.config import ClassificationConfig
from tests.finetune.conftest import NOUNS, VERBS


def make_examples(count: int, seed: int) -> list[Example]:
    """`count` pairs, both classes equally often; no text alone says which."""
    draw = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        halves = draw.integers(2, size=2)
        halves[1] = halves[0] if number % 2 else 1 - halves[0]
        texts = tuple(f"{VERBS[draw.integers(12)]}({NOUNS[6 * half + draw.integers(6)]})" for half in halves)
        examples.append(Example(texts, number % 2))
    return examples


def write_examples(path: Path, examples: Sequence[Example]) -> Path:
    """Write pairs as JSON lines."""
    lines = [json.dumps({"func1": e.texts[0], "func2": e.texts[1], "label": e.label}) for e in examples]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("examples")
    counts = {"train": 600, "validation": 100, "test": 150}
    return {name: write_examples(folder / f"{name}.jsonl", make_examples(n, seed=n)) for name, n in counts.items()}


@pytest.fixture
def config(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> ClassificationConfig:
    places = {name: str(path) for name, path in files.items()}
    return ClassificationConfig(
        checkpoint=str(checkpoint),
        output=str(tmp_path / "run"),
        steps=2,
        batch_rows=8,
        warmup_steps=0,
        learning_rate=3e-3,
        log_every_steps=2,
        device="cpu",
        **places,
    )
