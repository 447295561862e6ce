"""What a benchmark needs of a model: its exits, and what a judge makes of its similarities.

Letters: E exits, R rows (texts), D width.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.tasks.parts.problem import Judged, Part
from finetune.retrieval.prompts import Prompt
from mose.checkpoint.model_card import CARD_NAME
from mose.files.atomic_file import file_sha256

ONLY_EXIT = "-"


@dataclass(frozen=True)
class Exit:
    """One row of the result: an exit of a multi-exit model, or the whole of another model."""

    name: str = ONLY_EXIT
    layer: int | None = None
    parameters: int | None = None
    gflops_per_row: float | None = None


class Embedder(Protocol):
    """A model that turns texts into vectors, at one exit or several."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever an embedding would."""

    @property
    def exits(self) -> Sequence[Exit]:
        """The exits, shallow to deep."""

    def lengths(self, prompts: Sequence[Prompt]) -> Sequence[int]:
        """A length of each text: texts of similar length are embedded together."""

    def embed(self, prompts: Sequence[Prompt], role: str) -> NDArray[np.float32]:
        """Normalised embeddings [E, R, D] of every exit from one pass over the texts.

        Raises:
            MoseError: the model cannot be used; one line.
        """


class System(Protocol):
    """A model by its name in the config."""

    @property
    def name(self) -> str:
        """Its name in the config's `models`."""

    @property
    def kind(self) -> str:
        """What it is, in a word."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever a score could."""

    @property
    def exits(self) -> Sequence[Exit]:
        """The exits, shallow to deep."""

    def judge(self, task: str, part: Part) -> list[Judged] | None:
        """What the part's judge makes of each exit; None where this kind of model has no answer to such a part.

        Raises:
            MoseError: the model cannot be used, or gives numbers that are not finite; one line.
        """


def folder_fingerprint(folder: Path) -> str:
    """16 hexadecimal digits over the names and bytes of a folder's files; its card, which changes no embedding, is left out."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and _counts(path.relative_to(folder))):
        digest.update(f"{path.relative_to(folder)} {file_sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def _counts(path: Path) -> bool:
    return "__pycache__" not in path.parts and path != Path(CARD_NAME)
