"""CodeSearchNet's rules: each has a function that it drops and one beside it that stays."""

from dataclasses import replace

import pytest

from data_prep.synthconl.mining.functions import DocumentedFunction
from data_prep.synthconl.mining.rules import KEPT, REASONS, RULES, RulesConfig, SeenTexts, judge
from mose.errors import MoseError

GOOD = DocumentedFunction("read", "Table", "Read one table.", "def read(x):\n    y = x\n    return y", "Python", 1)
GETTER = "String getName() {\n    return name;\n}"
DROPPED = {
    "undocumented": replace(GOOD, summary=""),
    "inseparable_docstring": replace(GOOD, code=""),
    "test": replace(GOOD, name="readTestTable"),
    "constructor_or_standard_method": replace(GOOD, name="Table"),
    "getter_or_setter": replace(GOOD, name="getName", code=GETTER, language="Java"),
    "short_documentation": replace(GOOD, summary="Read table."),
    "long_documentation": replace(GOOD, summary="word " * 257),
    "foreign_documentation": replace(GOOD, summary="Читает одну таблицу."),
    "short_code": replace(GOOD, code="def read(x):\n\n    return x"),
    "unparsable_code": replace(GOOD, has_error=True),
    "huge_code": replace(GOOD, code="\n".join(["x = 1"] * 4000)),
}


def test_every_rule_has_an_example() -> None:
    assert list(DROPPED) == [reason for reason, _ in RULES]
    assert set(DROPPED) < set(REASONS)


@pytest.mark.parametrize("reason", DROPPED)
def test_a_rule_drops_its_example(reason: str) -> None:
    assert judge(DROPPED[reason], RulesConfig()) == reason


@pytest.mark.parametrize(
    "function",
    [
        GOOD,
        replace(GOOD, name="get_all", code="def get_all(x):\n    y = x\n    z = y\n    return z"),
        replace(GOOD, name="settle", code=GETTER),
        replace(GOOD, summary="word " * 256),
        replace(GOOD, summary="Lädt eine Tabelle und gibt sie zurück."),
    ],
)
def test_what_is_near_a_rule_stays(function: DocumentedFunction) -> None:
    assert judge(function, RulesConfig()) == KEPT


@pytest.mark.parametrize("name", ["__len__", "toString", "constructor", "~Table", "Clone"])
def test_standard_methods_by_name(name: str) -> None:
    assert judge(replace(GOOD, name=name), RulesConfig()) == "constructor_or_standard_method"


def test_a_text_is_new_once() -> None:
    seen = SeenTexts()
    assert seen.repeated("Read it.", "a b") == ""
    assert seen.repeated("Read it.", "other") == "repeated_documentation"
    assert seen.repeated("Write it.", "a\n   b") == "repeated_code"
    assert seen.repeated("Write it again.", "third") == ""


@pytest.mark.parametrize(
    "values",
    [{"max_documentation_words": 2}, {"min_code_lines": -1}, {"max_code_characters": 0}, {"min_documentation_words": -1}],
)
def test_limits_that_make_no_sense_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(MoseError, match=next(iter(values))):
        RulesConfig(**values)
