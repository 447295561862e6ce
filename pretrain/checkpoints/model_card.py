"""README.md of an exported folder: what the run was, what it reached, and how each exit is opened."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mose.files.streams import presentable
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.size import encoder_parameters, flops_per_row
from mose.run_directory import exit_scalar
from pretrain.config.objective import ObjectiveConfig, sequence_task
from pretrain.model.terms.registry import terms_of

CARD_NAME = "README.md"
# A row of this many tokens is what the table's operations are counted for.
TOKENS_OF_A_ROW = 512


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


def last_metrics(lines: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    """The last value of every scalar in lines of a metrics file up to `step`."""
    found: dict[str, Any] = {}
    for line in lines:
        if line["step"] <= step:
            found |= line
    return found


def model_card(config: ModularStarEncoderConfig, facts: RunFacts) -> str:
    """The card's text; the licence is left to whoever publishes the folder."""
    rows = [
        ("run", facts.name),
        ("optimiser steps", f"{facts.step:,}"),
        ("rows seen", f"{facts.consumed_rows:,}"),
        ("real tokens seen", f"{facts.consumed_tokens:,}"),
        ("data set", f"{facts.dataset} (fingerprint {facts.dataset_fingerprint})"),
        ("precision of training", facts.precision),
        ("layers, width, feed-forward", f"{config.num_hidden_layers}, {config.hidden_size}, {config.intermediate_size}"),
        ("heads, key-value heads", f"{config.num_attention_heads}, {config.num_key_value_heads}"),
        ("vocabulary, longest row", f"{config.vocab_size:,}, {config.max_position_embeddings:,} tokens"),
    ]
    objective = ObjectiveConfig(sequence_task=sequence_task(config.sequence_task))
    scalars = [f"{term.name(objective).upper()} {kind}" for term in terms_of(objective) for kind in term.kinds]
    meanings = ", and ".join(term.meanings[term.name(objective)] for term in terms_of(objective))
    exits = [_exit_row(config, layer, facts.metrics) for layer in config.exit_layers]
    parts = [
        _FRONT_MATTER,
        f"# {_plain(facts.name)}, step {facts.step:,}\n\n{_INTRODUCTION}",
        "## Run\n\n" + _table(("fact", "value"), rows),
        "## Exits\n\n" + _table((*_EXIT_COLUMNS, *scalars), exits),
        _LOSS_NOTE.format(tokens=TOKENS_OF_A_ROW, meanings=meanings),
        f"## Use\n\n{_use(config)}",
        f"## Files\n\n{_FILES}",
    ]
    return "\n\n".join(parts) + "\n"


_FRONT_MATTER = """---
# license: to be chosen by whoever publishes this folder
library_name: transformers
pipeline_tag: feature-extraction
tags:
- code
- sentence-transformers
- multi-exit
---"""
_INTRODUCTION = "A bidirectional encoder of source code, trained at several exits at once: each exit is a smaller model."
_FILES = "`parity.json`: largest difference of each exit to the model as it was trained; `facts.json`: the run's config."
_EXIT_COLUMNS = ("exit", "parameters up to it", "GFLOP a row")
_LOSS_NOTE = (
    "Parameters of the encoder without heads; operations of the forward pass over a row of {tokens} tokens; losses of the last "
    "logged training interval ({meanings})."
)


def _exit_row(config: ModularStarEncoderConfig, layer: int, metrics: dict[str, Any]) -> tuple[str, ...]:
    objective = ObjectiveConfig(sequence_task=sequence_task(config.sequence_task))
    names = [(kind, term.name(objective)) for term in terms_of(objective) for kind in term.kinds]
    values = [metrics.get(exit_scalar(kind, layer, name)) for kind, name in names]
    size, operations = encoder_parameters(config, layer), flops_per_row(config, layer, TOKENS_OF_A_ROW)
    shown = ["" if value is None else f"{value:.4f}" for value in values]
    return (str(layer), f"{size:,}", f"{operations / 1e9:,.2f}", *shown)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(text: str) -> str:
    """`text` as words of the page: a name with a line break, a bar or a tag stays in its cell, and is not HTML."""
    return html.escape(presentable(" ".join(text.split()))).replace("|", r"\|")


def _use(config: ModularStarEncoderConfig) -> str:
    exits = config.exit_layers
    chosen = f", exit_layer={exits[0]}" if len(exits) > 1 else ""
    keyword = f', model_kwargs={{"exit_layer": {exits[0]}}}' if len(exits) > 1 else ""
    lines = [
        "from transformers import AutoModel, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER", trust_remote_code=True)',
        f'model = AutoModel.from_pretrained("THIS_FOLDER", trust_remote_code=True{chosen})',
        'rows = tokenizer(["def add(a, b): return a + b"], padding=True, truncation=True, return_tensors="pt")',
        "states = model(rows.input_ids, rows.attention_mask).last_hidden_state  # the last token, <cls>, stands for the row",
        "",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'encoder = SentenceTransformer("THIS_FOLDER", trust_remote_code=True{keyword})',
        'embeddings = encoder.encode(["def add(a, b): return a + b"])',
    ]
    which = f"`exit_layer` is one of {', '.join(map(str, exits))}; deeper layers are not loaded. " if len(exits) > 1 else ""
    note = f"{which}The tokenizer puts `<sep>` before a text and `<cls>` behind it; do not write them."
    return f"{note}\n\n```python\n" + "\n".join(lines) + "\n```"


def write_card(folder: Path, config: ModularStarEncoderConfig, facts: RunFacts) -> None:
    """Write the card into `folder`."""
    (folder / CARD_NAME).write_text(model_card(config, facts), "utf-8")
