"""The registry of the loss's terms, in the order in which they are added and shown."""

from typing import Any

from pretrain.config.objective import ObjectiveConfig
from pretrain.model.terms.distillation import DISTILLATION
from pretrain.model.terms.masked_tokens import MASKED_TOKENS
from pretrain.model.terms.row_task import ROW_TASK
from pretrain.model.terms.term import LossTerm

TERMS: tuple[LossTerm[Any], ...] = (
    MASKED_TOKENS,
    ROW_TASK,
    DISTILLATION,
)
# Columns of sums: a column per term, then one per term with an accuracy, the same under every objective.
COLUMNS = (*(term.key for term in TERMS), *(term.correct_key for term in TERMS if term.correct is not None))


def terms_of(objective: ObjectiveConfig) -> tuple[LossTerm[Any], ...]:
    """The terms that an objective gives a positive weight."""
    return tuple(term for term in TERMS if term.weight(objective) > 0)
