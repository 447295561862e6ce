"""The classification stage: every exit learns a task on pairs, and a run leaves scores and a folder that transformers opens."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune.classification.examples import Example
from finetune.classification.train import read_data, train
from finetune.classification.trainer import Trainer
from finetune.config import ClassificationConfig
from finetune.distributed import World
from mose.checkpoint.converted_checkpoint import load_classification, random_like, truncate_at, write_checkpoint
from mose.config import load_config
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.run_directory import RunDirectory
from tests.finetune.classification.conftest import make_examples, write_examples
from tests.finetune.conftest import tiny_config
from tests.finetune.test_cli import run


def trainer_of(config: ClassificationConfig, rank: int = 0, ranks: int = 1) -> Trainer:
    trainer = Trainer.build(config, 2, torch.device("cpu"), World(rank, ranks))
    trainer.model.eval()
    return trainer


def gradients(trainers: list[Trainer], examples: list[Example]) -> list[torch.Tensor]:
    """The gradient of one batch, added over the trainers as ranks."""
    for trainer in trainers:
        trainer.backward(examples, 0)
    return [sum(p.grad for p in found) for found in zip(*(t.model.parameters() for t in trainers), strict=True)]


def test_every_exit_learns_and_the_folder_holds_the_scored_model(
    config: ClassificationConfig, capsys: pytest.CaptureFixture[str]
):
    config = replace(config, steps=240, batch_rows=32, warmup_steps=20, log_every_steps=60, validate_every_steps=120)
    train(config)
    folder = RunDirectory(Path(config.output))
    assert load_config(ClassificationConfig, folder.config) == config
    lines = folder.read_metrics()
    assert [line["step"] for line in lines] == [60, 120, 120, 180, 240, 240]
    exits = [lines[0][f"loss/exit_{name}/classes"] for name in ("01", "02", "04")]
    assert lines[0]["loss/total"] == pytest.approx(exits[0] / 4 + exits[1] / 2 + exits[2], rel=1e-5)
    assert "validation/f1/exit_04/argmax" in lines[2]

    values = json.loads((folder.path / "evaluation.json").read_text())
    assert values["test"]["rows"] == 150 and values["test"]["constant"]["f1"] == pytest.approx(2 / 3)
    for scores in values["test"]["exits"].values():
        # Chance is .5; three deviations of 150 fair coins are .12.
        assert scores["argmax"]["accuracy"] > 0.75 and scores["with_threshold"]["f1"] > 0.75
        assert 0 < scores["threshold"] < 1
    for scores in values["validation"]["exits"].values():
        assert scores["with_threshold"]["f1"] >= scores["argmax"]["f1"]
    printed = capsys.readouterr().out
    assert "test: 150 rows" in printed and (folder.path / "evaluation.txt").read_text() in printed

    saved = folder.path / "checkpoint"
    facts = json.loads((saved / "facts.json").read_text())
    assert facts["stage"] == "classification" and len(facts["thresholds"]) == 3
    rows = [list(example.texts) for example in make_examples(150, seed=150)]
    tokens = AutoTokenizer.from_pretrained(saved)(*map(list, zip(*rows, strict=True)), return_tensors="pt", padding=True)
    opened = AutoModelForSequenceClassification.from_pretrained(saved, trust_remote_code=True)
    assert opened.config.num_labels == 2 and not (saved / "modules.json").exists()
    with torch.no_grad():
        given = opened(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        early = opened(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], exit_layer=1)
    predicted = given.logits.argmax(dim=-1)
    labels = torch.arange(150) % 2
    assert float((predicted == labels).float().mean()) == pytest.approx(values["test"]["exits"]["04"]["argmax"]["accuracy"])
    assert torch.equal(early.logits, given.exit_logits[0]) and torch.equal(given.logits, given.exit_logits[2])

    cut = truncate_at(load_classification(saved), 2).eval()
    with torch.no_grad():
        logits = cut(tokens["input_ids"], tokens["attention_mask"]).logits
    torch.testing.assert_close(logits, given.exit_logits[1], atol=1e-5, rtol=1e-5)


def test_neither_chunks_nor_ranks_change_the_gradient(config: ClassificationConfig):
    examples = make_examples(13, seed=3)
    whole = gradients([trainer_of(config)], examples)
    chunked = gradients([trainer_of(replace(config, chunk_tokens=30))], examples)
    ranked = gradients([trainer_of(config, rank, 3) for rank in range(3)], examples)
    assert max(float(gradient.abs().max()) for gradient in whole) > 1e-3
    for other in (chunked, ranked):
        for found, expected in zip(other, whole, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_heads_start_from_the_pooler_and_differ_by_exit(config: ClassificationConfig):
    model = trainer_of(config).model
    dense, out = ([getattr(head, name).weight for head in model.classifiers] for name in ("dense", "out_proj"))
    assert all(torch.equal(weight, dense[0]) for weight in dense) and not torch.equal(out[0], out[1])
    control = trainer_of(replace(config, from_random=True)).model
    assert not torch.equal(control.starEncoder2.embed_tokens.weight, model.starEncoder2.embed_tokens.weight)


def test_the_same_seed_gives_the_same_scores(config: ClassificationConfig, tmp_path: Path):
    found = []
    for number, seed in enumerate((1, 1, 2)):
        train(replace(config, output=str(tmp_path / f"run{number}"), seed=seed))
        found.append((tmp_path / f"run{number}" / "checkpoint" / "model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_many_classes_of_single_texts_and_no_threshold(config: ClassificationConfig, tmp_path: Path):
    lines = [json.dumps({"text": "read(file)" * (1 + number % 3), "kind": number % 3}) for number in range(12)]
    path = tmp_path / "single.jsonl"
    path.write_text("\n".join(lines))
    places = {name: str(path) for name in ("train", "validation", "test")}
    train(replace(config, text_columns="text", label_column="kind", **places))
    values = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert values["classes"] == 3 and values["test"]["exits"]["01"]["threshold"] is None
    assert load_classification(tmp_path / "run" / "checkpoint").classifiers[0].out_proj.out_features == 3


def test_a_loss_that_is_not_finite_ends_the_run(config: ClassificationConfig):
    trainer = trainer_of(config)
    with torch.no_grad():
        trainer.model.classifiers[0].out_proj.bias.fill_(float("nan"))
    with pytest.raises(MoseError, match="step 5: the loss is nan; expected a finite one: look at learning_rate"):
        trainer.step(make_examples(8, seed=0), 4)


def test_labels_of_the_validation_files_are_classes_of_the_training_files(config: ClassificationConfig, tmp_path: Path):
    path = write_examples(tmp_path / "more.jsonl", [Example(("a", "b"), 2)])
    with pytest.raises(MoseError, match="more.jsonl: line 1: label: 2, expected a class from 0 to 1"):
        read_data(replace(config, validation=str(path)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"matryoshka_layers": [1, 9]}, r"config.json: matryoshka_layers: [1, 9], expected exits in 1 to 4"),
        ({"matryoshka_layers": []}, r"config.json: matryoshka_layers: [4, 9, 18, 27, 36], expected exits in 1 to 4"),
        ({"architectures": ["ModularStarEncoderForRetrieval"]}, "expected ModularStarEncoder"),
    ],
)
def test_a_folder_without_the_exits_or_heads(
    changes: dict[str, object],
    expected: str,
    config: ClassificationConfig,
    tokenizer_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    shape = ModularStarEncoderConfig(**{**tiny_config().to_dict(), "conditional_size": 0})
    write_checkpoint(tmp_path / "source", random_like(shape, seed=0), tokenizer_folder, {})
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    words = [f"--{name}={getattr(config, name)}" for name in ("train", "validation", "output")]
    assert run("classification", "--checkpoint", str(tmp_path / "source"), *words, "--steps=1", "--warmup_steps=0") == 2
    error = capsys.readouterr().err
    assert expected in error and len(error.splitlines()) == 1
    assert not (Path(config.output) / "metrics.jsonl").exists()


def test_another_tokenizer_is_refused(config: ClassificationConfig, tokenizer_folder: Path, tmp_path: Path):
    shape = ModularStarEncoderConfig(**{**tiny_config().to_dict(), "vocab_size": 300})
    write_checkpoint(tmp_path / "source", random_like(shape, seed=0), tokenizer_folder, {})
    with pytest.raises(MoseError, match=r"tokenizer.model: 400 tokens, but the model has embeddings for 300; expected"):
        train(replace(config, checkpoint=str(tmp_path / "source")))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--train=[]"], "train: none given, expected one or more"),
        (["--label_column=func1"], "text_columns: func1, func2, func1, expected each column once"),
        (["--num_classes=1"], "num_classes: 1, expected 0, or 2 or more"),
        (["--warmup_steps=3"], "warmup_steps: 3, expected 0 to 2 of 2 steps"),
        (["--decay=cosine"], "decay: 'cosine', expected one of constant, linear"),
        (["--batch_rows=0"], "batch_rows: 0, expected 1 or more"),
        (["--max_length=3"], "max_length: 3, expected 5 or more for 2 texts"),
    ],
)
def test_bad_values_are_one_line(
    words: list[str], expected: str, config: ClassificationConfig, capsys: pytest.CaptureFixture[str]
):
    names = ("checkpoint", "train", "validation", "output", "steps", "warmup_steps", "device")
    given = [f"--{name}={getattr(config, name)}" for name in names]
    assert run("classification", *given, *words) == 2
    error = capsys.readouterr().err
    assert expected in error and len(error.splitlines()) == 1
