"""TF-IDF and BM25 as systems: they see the words of the texts and learn nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune.evaluation.baselines.lexical import bm25_similarities, tfidf_similarities
from finetune.evaluation.ranking import Similarities
from finetune.evaluation.systems.system import Exit
from finetune.evaluation.tasks.parts.problem import Judged, Part
from mose.errors import MoseError

LEXICAL: dict[str, Callable[[Sequence[str], Sequence[str]], Similarities]] = {
    "tfidf": tfidf_similarities,
    "bm25": bm25_similarities,
}


@dataclass(frozen=True)
class LexicalSystem:
    """One way of ranking by words."""

    name: str
    kind: str

    @property
    def fingerprint(self) -> str:
        """Its kind: there is nothing else to change."""
        return self.kind

    @property
    def exits(self) -> Sequence[Exit]:
        """One."""
        return [Exit()]

    def judge(self, task: str, part: Part) -> list[Judged]:
        """What the part's judge makes of the similarities; term statistics are those of the part's documents."""
        documents = [prompt.text for prompt in part.documents.prompts]
        try:
            similarities = LEXICAL[self.kind]([prompt.text for prompt in part.query_prompts()], documents)
        except ValueError as error:
            raise MoseError(f"{self.name}: {task} {part.name}: {error}, expected documents with words") from None
        return [part.judge.judge(similarities)]
