"""The data card: front matter that parses, the counts of the manifest, nothing of a source that could break the page."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from data_prep.execution.pack import pack_dataset
from data_prep.tools.card import COMMAND, data_card
from mose.command import run_command
from mose.dataset.manifest import read_manifest
from tests.data_prep.repositories import make_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    config = make_config(folder)
    strange = folder / "repositories" / "a|b`c"
    strange.mkdir()
    (strange / "a.py").write_text("# ada@analytical.org\nx = 1\n" * 30, "utf-8")
    (strange / "LICENSE").write_text("Permission is hereby granted, free of charge, to any person\n", "utf-8")
    (strange / "uv.lock").write_text("version = 1\n", "utf-8")
    output = folder / "data"
    pack_dataset(dataclasses.replace(config, output=str(output), duplicates="drop"))
    return output


def test_a_card_has_the_counts_of_the_manifest(dataset: Path) -> None:
    card = data_card(dataset)
    _, front, body = card.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["license"] == "other" and values["size_categories"] == ["n<1K"] and values["language"] == ["code"]
    assert values["configs"][0]["data_files"][0] == {"split": "train", "path": "train/*.tar"}
    statistics = read_manifest(dataset).statistics
    filters = statistics["filters"]
    kept = filters["reasons"]["kept"]
    assert f"| kept | {kept['files']:,} | {kept['bytes']:,} |" in body
    assert f"| rows | {statistics['splits']['train']['rows']:,} | {statistics['splits']['held_out']['rows']:,} |" in body
    assert f"| email | {filters['replaced']['email']['files']:,} |" in body and "| generated | 1 |" in body and "| MIT |" in body
    assert "Not compared with any evaluation set" in body and "copies in other train repositories dropped" in body
    titles = [line for line in body.splitlines() if line.startswith("## ")]
    assert titles[0] == "## Contents" and titles[-1] == "## Known limits" and len(titles) == 9
    assert "- directories: `repositories`\n" in body and str(dataset.parent) not in card
    assert "`a\\|b'c`: 3 files" in body and data_card(dataset) == card


def test_it_is_printed_or_written(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("mose-data", "", {"card": COMMAND}, ["card", str(dataset)]) == 0
    printed = capsys.readouterr().out
    assert run_command("mose-data", "", {"card": COMMAND}, ["card", str(dataset), "--output", str(tmp_path / "README.md")]) == 0
    assert (tmp_path / "README.md").read_text("utf-8") == printed
    assert run_command("mose-data", "", {"card": COMMAND}, ["card", str(dataset), "--output", str(tmp_path)]) == 2
    assert "output: is a folder" in capsys.readouterr().err
    assert run_command("mose-data", "", {"card": COMMAND}, ["card", str(tmp_path)]) == 2
