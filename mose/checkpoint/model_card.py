"""README.md of a converted checkpoint: a model card as the Hugging Face Hub reads it, with every exit's scores, time and size."""

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mose.checkpoint.card_facts import CardFacts, CardResults, Fact, Measured, ScoredTask
from mose.checkpoint.card_use import LIBRARY_TAGS, PIPELINES, limits, use
from mose.checkpoint.retrieval_prompts import DOCUMENT_PROMPT, QUERY_PROMPT, named_prompts
from mose.files.streams import presentable
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoderForRetrieval
from mose.model.size import encoder_parameters, flops_per_row

CARD_NAME = "README.md"
# A row of this many tokens is what the table's operations are counted for.
TOKENS_OF_A_ROW = 512
_LICENCE_COMMENT = "# license: to be chosen by whoever publishes this folder"
_INTRODUCTION = "A bidirectional encoder of source code, trained at several exits at once: each exit is a smaller model."
_SIZE_NOTE = "Parameters of the encoder without heads; operations of the forward pass over a row of {tokens} tokens"


def model_card(
    config: ModularStarEncoderConfig, architecture: str, facts: CardFacts, results: CardResults | None = None, framed: bool = True
) -> str:
    """The card's text. `architecture` is the model's class; `framed` says that the tokenizer adds `<sep>` and `<cls>` itself."""
    results = results or CardResults()
    parts = [
        _front_matter(config, architecture, facts, results),
        f"# {_plain(facts.title)}\n\n{_INTRODUCTION}",
        *(f"## {_plain(stage.title)}\n\n{_facts_table(stage.facts)}" for stage in facts.stages),
        f"## Shape\n\n{_facts_table(_shape(config))}",
        f"## Exits\n\n{_exits(config, facts, results)}",
        *_scores(results.tasks),
        f"## Use\n\n{use(config, architecture, framed)}",
        *_instructions(config, architecture),
        "## Limits\n\n" + "\n".join(f"- {_plain(line)}" for line in limits(config, architecture, results.tasks)),
        f"## Licence and data\n\n{_lineage(facts, results)}",
        f"## Files\n\n{_FILES}",
    ]
    return "\n\n".join(parts) + "\n"


_FILES = (
    "`facts.json`: what made the folder; `parity.json`, where the exporter wrote it: largest difference of each exit to the "
    "model as it was trained. `mose-finetune card` writes this page again with scores and times."
)


def write_card(
    folder: Path,
    config: ModularStarEncoderConfig,
    architecture: str,
    facts: CardFacts,
    results: CardResults | None = None,
    framed: bool = True,
) -> None:
    """Write the card into a folder that is being made."""
    (folder / CARD_NAME).write_text(model_card(config, architecture, facts, results, framed), "utf-8")


def _front_matter(config: ModularStarEncoderConfig, architecture: str, facts: CardFacts, results: CardResults) -> str:
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[architecture],
        "language": ["code"],
        "tags": ["code", *LIBRARY_TAGS[architecture], "multi-exit"],
    }
    if results.licence:
        values = {"license": results.licence, **values}
    if results.tasks:
        values["model-index"] = [{"name": _one_line(facts.title), "results": [_hub_result(task) for task in results.tasks]}]
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=False)
    comment = "" if results.licence else f"{_LICENCE_COMMENT}\n"
    return f"---\n{comment}{text}---"


def _hub_result(task: ScoredTask) -> dict[str, Any]:
    """One entry of the Hub's model-index; an exit is identified by the metric's name and arguments."""
    metrics = []
    for layer, scores in task.exits.items():
        for measure, score in scores.items():
            arguments: dict[str, Any] = {"exit_layer": layer}
            if score.interval is not None:
                arguments["interval_95"] = [round(bound, 4) for bound in score.interval]
            name = f"{task.measures[measure]}, exit {layer}"
            metrics.append({"type": measure, "value": round(score.value, 4), "name": name, "args": arguments})
    dataset = {"type": _one_line(task.dataset), "name": _one_line(task.dataset), "split": _one_line(task.split)}
    return {"task": {"type": task.task_type, "name": _one_line(task.title)}, "dataset": dataset, "metrics": metrics}


def _shape(config: ModularStarEncoderConfig) -> list[Fact]:
    return [
        Fact("layers, width, feed-forward", f"{config.num_hidden_layers}, {config.hidden_size}, {config.intermediate_size}"),
        Fact("heads, key-value heads", f"{config.num_attention_heads}, {config.num_key_value_heads}"),
        Fact("vocabulary, longest row", f"{config.vocab_size:,}, {config.max_position_embeddings:,} tokens"),
    ]


def _exits(config: ModularStarEncoderConfig, facts: CardFacts, results: CardResults) -> str:
    times = results.times
    timed = ("ms per query", "texts per second", "MB") if times else ()
    rows = []
    for layer in config.exit_layers:
        cells = [str(layer), f"{encoder_parameters(config, layer):,}"]
        cells.append(f"{flops_per_row(config, layer, TOKENS_OF_A_ROW) / 1e9:,.2f}")
        cells += facts.cells.get(str(layer), ("",) * len(facts.columns))
        if times:
            rate, size = times.texts_per_second.get(layer), times.megabytes.get(layer)
            cells += [_number(times.query_ms.get(layer), ",.2f"), _number(rate, ",.0f"), _number(size, ",.1f")]
        rows.append(cells)
    notes = [_SIZE_NOTE.format(tokens=TOKENS_OF_A_ROW), facts.note, f"times: {times.setting}" if times else ""]
    note = "; ".join(_plain(part) for part in notes if part)
    missing = (
        "" if times else "\n\nTimes were not measured: `mose-finetune card --checkpoint THIS_FOLDER` measures and adds them."
    )
    return f"{_table(('exit', 'parameters up to it', 'GFLOP per row', *facts.columns, *timed), rows)}\n\n{note}.{missing}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _scores(tasks: Sequence[ScoredTask]) -> Iterator[str]:
    if not tasks:
        return
    yield "## Scores\n\nBrackets hold 95 % intervals. They are for the queries that were scored, of one trained model."
    for task in tasks:
        rows = [[f"exit {layer}", *_score_cells(task, scores)] for layer, scores in task.exits.items()]
        rows += [[name, *_score_cells(task, scores)] for name, scores in task.references.items()]
        about = ", ".join(_plain(part) for part in (f"data: {task.dataset}, split {task.split}", task.note) if part)
        yield f"### {_plain(task.title)}\n\n{_table(('', *task.measures.values()), rows)}\n\n{about}."


def _score_cells(task: ScoredTask, scores: Mapping[str, Measured]) -> list[str]:
    return [score_text(scores[measure]) if measure in scores else "" for measure in task.measures]


def score_text(score: Measured) -> str:
    """`0.412 [0.381, 0.440]`, or the value alone."""
    interval = "" if score.interval is None else f" [{score.interval[0]:.3f}, {score.interval[1]:.3f}]"
    return f"{score.value:.3f}{interval}"


def _instructions(config: ModularStarEncoderConfig, architecture: str) -> Iterator[str]:
    if architecture != ModularStarEncoderForRetrieval.__name__:
        return
    prompts = named_prompts(config.languages or ())
    languages = [name for name in prompts if name not in (QUERY_PROMPT, DOCUMENT_PROMPT)]
    shown = [QUERY_PROMPT, DOCUMENT_PROMPT, *languages]
    trained = ", ".join(config.languages) if config.languages else "not recorded"
    yield (
        "## Languages and instructions\n\n"
        f"Fine-tuned on: {_plain(trained)}. An instruction stands before each text; sentence-transformers takes it by its prompt "
        "name (`encode_query` and `encode_document` know theirs).\n\n"
        + _table(("prompt", "instruction"), [(name, prompts[name]) for name in shown])
    )


def _lineage(facts: CardFacts, results: CardResults) -> str:
    licence = results.licence and f"The weights are published under `{_plain(results.licence)}`."
    lines = [licence or "No licence was chosen for the weights: whoever publishes the folder does."]
    if facts.data:
        lines.append(_facts_table(facts.data))
        lines.append(
            "`mose-data lineage DATASET --row N` names the files in a row of pre-training; with `--blob` or `--repository` it "
            "finds the rows that hold a file or a repository."
        )
    else:
        lines.append("The folder does not record which data it was trained on.")
    return "\n\n".join(lines)


def _facts_table(facts: Sequence[Fact]) -> str:
    return _table(("fact", "value"), [(fact.name, fact.value) for fact in facts])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _one_line(text: str) -> str:
    return presentable(" ".join(text.split()))


def _plain(text: str) -> str:
    """`text` as words of the page: a name with a line break, a bar or a tag stays in its cell, and is not HTML."""
    return html.escape(_one_line(text)).replace("|", r"\|")
