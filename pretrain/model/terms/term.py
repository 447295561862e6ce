"""The declaration of a term of the loss; training, logging, validation, plots and the model card read it from here.

Letters: M masked tokens, V vocabulary columns (of this rank under tensor parallelism), B rows.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from pretrain.config.objective import ObjectiveConfig
from pretrain.model.terms.vocabulary import VocabularyOperations

Predictions = TypeVar("Predictions")


@dataclass(frozen=True)
class Denominators:
    """Divisors of the sums: masked tokens and rows of the whole global batch, over all data ranks."""

    masked_tokens: int
    rows: int


@dataclass(frozen=True)
class TokenPredictions:
    """What one exit predicts for the masked tokens of a micro-batch."""

    logits_MV: Tensor
    """Columns that pad the vocabulary are -inf."""
    labels_M: Tensor
    teacher_MV: Tensor | None
    """Log-probabilities of the deepest exit; None at that exit, and where no term compares with it."""
    vocabulary: VocabularyOperations
    objective: ObjectiveConfig


@dataclass(frozen=True)
class RowPredictions:
    """What one exit predicts for the rows of a micro-batch."""

    logits_B2: Tensor
    """In float32."""
    labels_B: Tensor
    """1 where the row is of two repositories, 0 where it is of one, -100 for a placeholder that does not count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LossTerm(abc.ABC, Generic[Predictions]):
    """One term: total = sum over exits of exit weight x sum over terms of weight x sum / denominator."""

    unit: ClassVar[str]
    """What its loss is a mean over, in the singular."""

    key: str
    """Name of its column of sums, the same under every objective."""
    meanings: Mapping[str, str]
    """Names that its scalars may have (`loss/exit_04/NAME`), and for the model card what the term asks under each."""
    name: Callable[[ObjectiveConfig], str]
    """Its name under an objective."""
    weight: Callable[[ObjectiveConfig], float]
    """Its factor under an objective; a term of weight 0 is off."""
    loss: Callable[[Predictions], Tensor]
    """Sum of the losses of a micro-batch, with gradient."""
    correct: Callable[[Predictions], Tensor] | None = None
    """Number of right predictions; None: the term has no accuracy."""
    follows_deepest: bool = False
    """Whether it compares an exit with the deepest one, which has no such term."""
    computed_when_off: bool = False
    """Compute it even at weight 0, so that the parameters of its head have a gradient in every ZeRO stage."""
    bytes_per_logit: int = 0
    """Memory that it adds per vocabulary logit of a micro-batch's masked tokens, for the estimate."""

    @property
    def correct_key(self) -> str:
        """Name of the column that counts right predictions."""
        return f"{self.key}_correct"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which scalars of an exit it has, as `exit_scalar` names them."""
        return ("loss",) if self.correct is None else ("loss", "accuracy")

    @abc.abstractmethod
    def denominator(self, denominators: Denominators) -> int:
        """How many items its mean is over."""


class TokenTerm(LossTerm[TokenPredictions]):
    """A term over the masked tokens; its logits [M, V] are computed again in the backward pass."""

    unit = "masked token"

    def denominator(self, denominators: Denominators) -> int:
        """Masked tokens of the global batch."""
        return denominators.masked_tokens


class RowTerm(LossTerm[RowPredictions]):
    """A term over the rows, from the two-way head on their last token."""

    unit = "row"

    def denominator(self, denominators: Denominators) -> int:
        """Rows of the global batch."""
        return denominators.rows
