"""The card of an exported folder: what the run was, what it reached, and which data it saw (`mose.checkpoint.model_card`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mose.checkpoint.card_facts import CardFacts, Fact, Stage
from mose.checkpoint.model_card import model_card as rendered
from mose.dataset.manifest import Manifest, read_manifest
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder
from mose.run_directory import exit_scalar
from pretrain.config.objective import ObjectiveConfig, sequence_task
from pretrain.model.terms.registry import terms_of

_MOST_NAMES = 8


@dataclass(frozen=True)
class RunFacts:
    """Facts about the run for the card."""

    name: str
    step: int
    consumed_rows: int
    consumed_tokens: int
    dataset: str
    dataset_fingerprint: str
    precision: str
    metrics: dict[str, Any]
    """The last value of each scalar up to that step."""
    data: tuple[Fact, ...] = ()
    """Lineage of its data sets, from `data_lineage`."""


def last_metrics(lines: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    """The last value of every scalar in lines of a metrics file up to `step`."""
    found: dict[str, Any] = {}
    for line in lines:
        if line["step"] <= step:
            found |= line
    return found


def model_card(config: ModularStarEncoderConfig, facts: RunFacts) -> str:
    """The card's text; the licence is left to whoever publishes the folder."""
    return rendered(config, ModularStarEncoder.__name__, card_facts(config, facts))


def card_facts(config: ModularStarEncoderConfig, facts: RunFacts) -> CardFacts:
    """What the card says about the run, with the last losses of each exit that `config` has."""
    rows = {
        "run": facts.name,
        "optimiser steps": f"{facts.step:,}",
        "rows seen": f"{facts.consumed_rows:,}",
        "real tokens seen": f"{facts.consumed_tokens:,}",
        "data set": f"{facts.dataset} (fingerprint {facts.dataset_fingerprint})",
        "precision of training": facts.precision,
    }
    objective = ObjectiveConfig(sequence_task=sequence_task(config.sequence_task))
    terms = terms_of(objective)
    meanings = ", and ".join(term.meanings[term.name(objective)] for term in terms)
    columns = [(kind, term.name(objective)) for term in terms for kind in term.kinds]
    return CardFacts(
        title=f"{facts.name}, step {facts.step:,}",
        stages=(Stage("Pre-training", tuple(Fact(*row) for row in rows.items())),),
        data=(Fact("pre-training data", rows["data set"]), *facts.data),
        columns=tuple(f"{name.upper()} {kind}" for kind, name in columns),
        cells={str(layer): _exit_cells(facts.metrics, layer, columns) for layer in config.exit_layers},
        note=f"losses of the last logged training interval ({meanings})",
    )


def _exit_cells(metrics: Mapping[str, Any], layer: int, columns: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    values = [metrics.get(exit_scalar(kind, layer, name)) for kind, name in columns]
    return tuple("" if value is None else f"{value:.4f}" for value in values)


def data_lineage(datasets: Sequence[tuple[str, Path, float]]) -> tuple[Fact, ...]:
    """Content, languages and licences of a run's data sets (name, folder, weight), as far as their manifests can be read.

    An export does not need the data: where it was moved away since, the card names its fingerprint alone.
    """
    found: list[Fact] = []
    for name, folder, weight in datasets:
        try:
            manifest = read_manifest(folder)
        except (MoseError, OSError):
            continue
        label = name if len(datasets) == 1 else f"{name} (weight {weight:g})"
        found += [Fact(f"{label}: {what}", value) for what, value in _manifest_facts(manifest)]
    return tuple(found)


def _manifest_facts(manifest: Manifest) -> list[tuple[str, str]]:
    facts = [
        ("content", f"{manifest.content_root[:16]}, generation {len(manifest.content_generations)} (SHA-256 over all shards)"),
        ("tokenizer", manifest.tokenizer_fingerprint),
        ("rows, tokens", f"{manifest.rows('train'):,}, {manifest.tokens('train'):,} to train on"),
    ]
    # Counts of a manifest are for people: one of another version may lack them or have them in another form.
    train = _mapping(_mapping(manifest.statistics.get("splits")).get("train"))
    languages = {name: count for name, count in _mapping(train.get("tokens_by_language")).items() if isinstance(count, int)}
    licences = _mapping(_mapping(manifest.statistics.get("filters")).get("licences"))
    sizes = {name: size for name, tally in licences.items() if isinstance(size := _mapping(tally).get("bytes"), int)}
    if isinstance(repositories := train.get("repositories"), int):
        facts.append(("repositories", f"{repositories:,} to train on"))
    facts += [("languages by tokens", _shares(languages))] if languages else []
    facts += [("licences of the files by bytes", _shares(sizes))] if sizes else []
    return facts


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _shares(counts: Mapping[str, int]) -> str:
    """`MIT 41.2 %, Apache-2.0 30.0 %, 12 others 3.1 %`."""
    whole = max(1, sum(counts.values()))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown, rest = ordered[:_MOST_NAMES], ordered[_MOST_NAMES:]
    parts = [f"{name} {100 * count / whole:.1f} %" for name, count in shown]
    parts += [f"{len(rest)} others {100 * sum(count for _, count in rest) / whole:.1f} %"] if rest else []
    return ", ".join(parts)
