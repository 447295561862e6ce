"""Covers the model card: the Hub's own parser reads it, each part has its place, and names in it are no markup."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from mose.checkpoint.card_facts import (
    FACTS_NAME,
    CardFacts,
    CardResults,
    ExitTimes,
    Fact,
    Measured,
    ScoredTask,
    Stage,
    after_stage,
    read_card_facts,
    with_card,
)
from mose.checkpoint.model_card import model_card
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig

RETRIEVAL, CLASSIFIER = "ModularStarEncoderForRetrieval", "ModularStarEncoderForSequenceClassification"
CONFIG = ModularStarEncoderConfig(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    matryoshka_layers=[1, 4],
    languages=["python", "zig"],
)
TRUNK = CardFacts("trunk", (Stage("Pre-training", (Fact("run", "trunk"),)),), (Fact("pre-training data", "code (0123)"),))
FACTS = after_stage(
    TRUNK, "tuned, step 7", Stage("Fine-tuning", (Fact("optimiser steps", "7"),)), (Fact("file a.parquet", "SHA-256 ab"),)
)
TASK = ScoredTask(
    title="Search",
    dataset="pairs.parquet",
    split="held_out",
    task_type="text-retrieval",
    measures={"mrr": "MRR", "recall_at_1": "recall@1"},
    exits={
        1: {"mrr": Measured(0.25, (0.2, 0.3)), "recall_at_1": Measured(0.125)},
        4: {"mrr": Measured(0.5, (0.4, 0.6)), "recall_at_1": Measured(0.25)},
    },
    references={"BM25": {"mrr": Measured(0.75, (0.7, 0.8))}, "chance": {"mrr": Measured(0.01)}},
    note="12 queries",
)
TIMES = ExitTimes("cpu, 1 thread", {1: 1.5, 4: 6.0}, {1: 400.0, 4: 100.0}, {1: 0.5, 4: 2.0})


def test_the_hubs_own_parser_reads_scores_licence_and_tags() -> None:
    card = ModelCard(model_card(CONFIG, RETRIEVAL, FACTS, CardResults((TASK,), TIMES, "apache-2.0")))
    assert (card.data.license, card.data.pipeline_tag, card.data.model_name) == (
        "apache-2.0",
        "sentence-similarity",
        "tuned, step 7",
    )
    assert card.data.tags == ["code", "sentence-transformers", "multi-exit"]
    found = {result.metric_name: result for result in card.data.eval_results}
    assert found.keys() == {f"{measure}, exit {layer}" for measure in ("MRR", "recall@1") for layer in (1, 4)}
    deep = found["MRR, exit 4"]
    assert (deep.task_type, deep.dataset_name, deep.dataset_split) == ("text-retrieval", "pairs.parquet", "held_out")
    assert (deep.metric_type, deep.metric_value) == ("mrr", 0.5)
    assert deep.metric_args == {"exit_layer": 4, "interval_95": [0.4, 0.6]}
    # Written again by the Hub's own code, it stays the same card.
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_scores_times_stages_lineage_and_limits_have_their_place() -> None:
    text = model_card(CONFIG, RETRIEVAL, FACTS, CardResults((TASK,), TIMES))
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "0.500 [0.400, 0.600]" in rows["exit 4"] and "0.750 [0.700, 0.800]" in rows["BM25"]
    assert rows["4"].endswith("| 6.00 | 100 | 2.0 |")
    assert rows["zig"] == "| zig | Represent this zig code snippet for retrieval: |"
    assert "SHA-256 ab" in rows["file a.parquet"] and "code (0123)" in rows["pre-training data"]
    assert text.index("## Pre-training") < text.index("## Fine-tuning") < text.index("## Exits")
    assert "- Search: BM25 is better than every exit (MRR)." in text and "chance is better" not in text
    assert "# license:" in text and "encode_query" in text


@pytest.mark.parametrize(("architecture", "use"), [(RETRIEVAL, "Encoder.from_pretrained"), (CLASSIFIER, "exit_logits")])
def test_each_kind_says_how_it_is_used(architecture: str, use: str) -> None:
    text = model_card(CONFIG, architecture, FACTS)
    assert use in text and "- No scores are known here." in text and "Times were not measured" in text
    assert ModelCard(text).data.eval_results is None


def test_the_published_layout_asks_for_the_special_tokens() -> None:
    assert "Write `<sep>` before a text" in model_card(CONFIG, RETRIEVAL, FACTS, framed=False)


def test_names_are_neither_markup_nor_yaml() -> None:
    hostile = "a|b\n# c <script>x</script>\x1b[2J: {y"
    task = ScoredTask(hostile, hostile, hostile, "text-retrieval", TASK.measures, TASK.exits, {hostile: TASK.references["BM25"]})
    facts = CardFacts(hostile, (Stage(hostile, (Fact(hostile, hostile),)),), (Fact(hostile, hostile),))
    text = model_card(CONFIG, RETRIEVAL, facts, CardResults((task,)))
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body and "\n# c" not in body and "\x1b" not in text
    assert ModelCard(text).data.eval_results[0].task_name == "a|b # c <script>x</script>\\x1b[2J: {y"


def test_facts_are_read_back_and_older_folders_have_a_title(tmp_path: Path) -> None:
    (tmp_path / FACTS_NAME).write_text(json.dumps(with_card({"stage": "retrieval"}, FACTS)))
    assert read_card_facts(tmp_path) == FACTS
    (tmp_path / FACTS_NAME).write_text(json.dumps({"stage": "retrieval"}))
    assert read_card_facts(tmp_path) == CardFacts(tmp_path.name)
    (tmp_path / FACTS_NAME).write_text('{"card": {"title": 3}}')
    with pytest.raises(MoseError, match=r"facts\.json: card\.title: 3, expected text"):
        read_card_facts(tmp_path)
