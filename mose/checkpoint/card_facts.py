"""What a model card says about a model: how its folder was made (kept in `facts.json`), and what was measured of it since."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mose.errors import MoseError
from mose.files.json_file import parse_json
from mose.files.records import from_plain

FACTS_NAME = "facts.json"
CARD_FIELD = "card"
"""The field of `facts.json` that holds `CardFacts`: a card written later, with scores, has the same facts."""


@dataclass(frozen=True)
class Fact:
    """One line of a table of facts."""

    name: str
    value: str


@dataclass(frozen=True)
class Stage:
    """One stage of a model's making: pre-training, fine-tuning."""

    title: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class CardFacts:
    """How the folder of a model was made."""

    title: str
    stages: tuple[Stage, ...] = ()
    """In their order; a fine-tuned model has those of the model that it began with, too."""
    data: tuple[Fact, ...] = ()
    """Lineage: data sets and files with their fingerprints, languages, licences."""
    columns: tuple[str, ...] = ()
    """Columns that training adds to the table of exits."""
    cells: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The cells of these columns by the exit's layer."""
    note: str = ""
    """What these columns hold."""


@dataclass(frozen=True)
class Measured:
    """A score from 0 to 1 and its 95 % interval, where one is known."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class ScoredTask:
    """The scores of the exits on one task, as the Hub lists results."""

    title: str
    dataset: str
    split: str
    task_type: str
    """The Hub's name for the kind of task."""
    measures: Mapping[str, str]
    """Column titles by the measure's name on the Hub."""
    exits: Mapping[int, Mapping[str, Measured]]
    """Score by exit and measure."""
    references: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    """Scores of the baselines: lexical search, chance, other models."""
    note: str = ""


@dataclass(frozen=True)
class ExitTimes:
    """Time and size of each exit by layer, and where they were measured."""

    setting: str
    query_ms: Mapping[int, float]
    texts_per_second: Mapping[int, float]
    megabytes: Mapping[int, float]


@dataclass(frozen=True)
class CardResults:
    """What is known of a model only after its folder was written."""

    tasks: tuple[ScoredTask, ...] = ()
    times: ExitTimes | None = None
    licence: str = ""
    """The Hub's name of the licence of the weights; empty: it is left to whoever publishes the folder."""


def after_stage(trunk: CardFacts | None, title: str, stage: Stage, data: tuple[Fact, ...]) -> CardFacts:
    """The facts of a model that a stage of fine-tuning made of `trunk`; None where it began with random weights."""
    before = trunk or CardFacts(title)
    return CardFacts(title, (*before.stages, stage), (*before.data, *data))


def with_card(facts: Mapping[str, Any], card: CardFacts) -> dict[str, Any]:
    """The fields of a `facts.json` with those of the card."""
    # As JSON has it: tuples become lists, as the reader below expects them.
    return {**facts, CARD_FIELD: json.loads(json.dumps(dataclasses.asdict(card)))}


def card_facts_of(facts: Any, title: str) -> CardFacts:
    """The card's facts in the fields of a `facts.json`; of a folder of an earlier version, which has none, the title alone.

    Raises:
        ValueError: they are there and of another form.
    """
    if not isinstance(facts, dict) or CARD_FIELD not in facts:
        return CardFacts(title)
    return from_plain(CardFacts, facts[CARD_FIELD], CARD_FIELD)


def read_card_facts(folder: Path) -> CardFacts:
    """The card's facts of a converted checkpoint; see `card_facts_of`.

    Raises:
        MoseError: `facts.json` is there and is not JSON, or its card has another form.
    """
    path = folder / FACTS_NAME
    try:
        facts = parse_json(path.read_bytes()) if path.is_file() else {}
        return card_facts_of(facts, folder.resolve().name)
    except ValueError as error:
        raise MoseError(f"{path}: {error}") from None
