"""Covers the registry of the loss's terms: the columns of sums, which terms an objective has, and what each declares."""

from pretrain.config.objective import ObjectiveConfig
from pretrain.model.terms.registry import COLUMNS, TERMS, terms_of
from pretrain.model.terms.term import Denominators

DISTILLED = ObjectiveConfig(sequence_task="nsp", distillation_weight=0.5)


def test_columns_are_the_same_under_every_objective() -> None:
    assert COLUMNS == ("mlm", "task", "distillation", "mlm_correct", "task_correct")


def test_names_of_scalars_are_declared_and_unique() -> None:
    names = [name for term in TERMS for name in term.meanings]
    assert names == ["mlm", "icc", "nsp", "distillation"]
    assert all(term.name(DISTILLED) in term.meanings for term in terms_of(DISTILLED))


def test_each_term_has_its_weight_denominator_and_scalars() -> None:
    counts = Denominators(masked_tokens=300, rows=8)
    found = {term.name(DISTILLED): (term.weight(DISTILLED), term.denominator(counts), term.kinds) for term in terms_of(DISTILLED)}
    assert found == {
        "mlm": (1.0, 300, ("loss", "accuracy")),
        "nsp": (1.0, 8, ("loss", "accuracy")),
        "distillation": (0.5, 300, ("loss",)),
    }
    assert [term.key for term in TERMS if term.follows_deepest] == ["distillation"]
