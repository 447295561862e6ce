"""Embeddings on disk: in the texts' order, computed once, and refused where they are of something else."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.evaluation.systems.store import EmbeddingStore
from finetune.evaluation.systems.system import Exit
from finetune.evaluation.tasks.parts.problem import Texts
from finetune.retrieval.prompts import Prompt
from mose.errors import MoseError


class Counter:
    """Embeds a text as its length, at two exits; counts the texts, and fails where it is asked to."""

    def __init__(self, fingerprint: str = "one", width: int = 3):
        self.fingerprint, self.width, self.texts, self.fail_after = fingerprint, width, 0, 10**9
        self.exits = [Exit("01"), Exit("02")]
        self.wrong: float | None = None

    def lengths(self, prompts: Sequence[Prompt]) -> Sequence[int]:
        return [len(prompt.text) for prompt in prompts]

    def embed(self, prompts: Sequence[Prompt], role: str) -> NDArray[np.float32]:
        if self.texts >= self.fail_after:
            raise KeyboardInterrupt
        self.texts += len(prompts)
        lengths = np.array([len(prompt.text) for prompt in prompts], dtype=np.float32)
        table = np.stack([lengths, -lengths])[:, :, None].repeat(self.width, axis=2)
        if self.wrong is not None:
            table[1, -1, 0] = self.wrong
        return table


LENGTHS = [5, 1, 9, 3, 7, 2, 8]


def texts(name: str = "codes", lengths: Sequence[int] = LENGTHS) -> Texts:
    return Texts(name, "document", [Prompt("say:", "x" * length) for length in lengths])


def store(folder: Path, embedder: Counter) -> EmbeddingStore:
    return EmbeddingStore(folder, "Model", embedder, block_texts=2)


def test_rows_keep_the_order_of_the_texts(tmp_path: Path) -> None:
    table = store(tmp_path, Counter()).table("task", texts())
    assert table.shape == (2, 7, 3)
    assert table[0, :, 0].tolist() == LENGTHS and table[1, :, 2].tolist() == [-length for length in LENGTHS]


def test_a_killed_run_embeds_only_what_is_missing(tmp_path: Path) -> None:
    embedder = Counter()
    embedder.fail_after = 4
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, embedder).table("task", texts())
    again = Counter()
    table = store(tmp_path, again).table("task", texts())
    assert again.texts == 3 and np.array_equal(table, store(tmp_path / "new", Counter()).table("task", texts()))


def test_a_half_written_block_is_said_and_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = store(tmp_path, Counter()).table("task", texts())
    block = tmp_path / "task" / "codes-document" / "block-000001.npy"
    block.write_bytes(block.read_bytes()[:-5])
    again = Counter()
    assert np.array_equal(store(tmp_path, again).table("task", texts()), whole) and again.texts == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{block}: not a whole block of embeddings (") and line.endswith("computed again")


@pytest.mark.parametrize(
    ("embedder", "lengths", "line"),
    [
        (
            Counter("two"),
            LENGTHS,
            r"inputs.json: embeddings of another model than Model's, expected a new `output`",
        ),
        (Counter(), LENGTHS[::-1], r"inputs.json: embeddings of another texts than Model's, expected a new `output`"),
    ],
)
def test_embeddings_of_something_else_are_refused_and_kept(
    embedder: Counter, lengths: Sequence[int], line: str, tmp_path: Path
) -> None:
    store(tmp_path, Counter()).table("task", texts())
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(MoseError, match=line):
        store(tmp_path, embedder).table("task", texts(lengths=lengths))
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_and_not_kept(wrong: float, tmp_path: Path) -> None:
    embedder = Counter()
    embedder.wrong = wrong
    with pytest.raises(
        MoseError, match="Model: task/codes: exit 02: the embedding of 'xx' holds NaN or infinity, expected numbers"
    ):
        store(tmp_path, embedder).table("task", texts())
    assert not list(tmp_path.rglob("*.npy"))


def test_another_width_than_before_is_one_line(tmp_path: Path) -> None:
    first = Counter()
    first.fail_after = 2
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, first).table("task", texts())
    with pytest.raises(MoseError, match="Model: task/codes: embeddings of 4 dimensions, expected the 3 of the texts before"):
        store(tmp_path, Counter(width=4)).table("task", texts())
