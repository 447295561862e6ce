"""A model that embeds, as a system: similarities are cosines of stored embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.ranking import Similarities
from finetune.evaluation.systems.store import EmbeddingStore
from finetune.evaluation.systems.system import Exit
from finetune.evaluation.tasks.parts.problem import Judged, Part


@dataclass(frozen=True)
class EmbeddingSystem:
    """Embeddings of all exits come from one pass over the texts, and are kept by the store."""

    kind: str
    store: EmbeddingStore

    @property
    def name(self) -> str:
        """Its name in the config's `models`."""
        return self.store.name

    @property
    def fingerprint(self) -> str:
        """The embedder's."""
        return self.store.embedder.fingerprint

    @property
    def exits(self) -> Sequence[Exit]:
        """The embedder's."""
        return self.store.embedder.exits

    def judge(self, task: str, part: Part) -> list[Judged]:
        """What the part's judge makes of each exit."""
        documents_EKD = self.store.table(task, part.documents)
        queries_EQD = documents_EKD if part.queries is None else self.store.table(task, part.queries)
        if part.query_places is not None:
            queries_EQD = queries_EQD[:, part.query_places]
        return [part.judge.judge(_cosines(*tables)) for tables in zip(queries_EQD, documents_EKD, strict=True)]


def _cosines(queries_QD: NDArray[np.float32], documents_KD: NDArray[np.float32]) -> Similarities:
    return lambda part: queries_QD[part] @ documents_KD.T
