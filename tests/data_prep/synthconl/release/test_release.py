"""`mose-data synthconl`: rows in the released schema, near-duplicates cut, splits apart, and inputs that do not fit."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.synthconl.mining.seed_file import Seed, SeedWriter
from data_prep.synthconl.release.command import print_statistics, release
from data_prep.synthconl.release.config import ReleaseConfig
from data_prep.synthconl.release.rows import RELEASED
from data_prep.synthconl.translation.config import TranslateConfig
from data_prep.synthconl.translation.journal import Entry, Journal
from finetune.pair_files import read_pair_files
from mose.errors import MoseError

SEEDS = [
    Seed(
        f"Give thing {i} back.",
        f"def f{i}(x):\n    return x + {i}",
        "Python",
        f"owner/r{i // 2}",
        f"/{i}.py",
        split,
        f"f{i}",
        "",
        "MIT",
    )
    for i, split in enumerate(["train"] * 6 + ["held_out"] * 4)
]
Group = tuple[int | str, int | str, bool]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Ten seeds; all but the last have a translation, that of the first after a rejected answer."""
    with SeedWriter(tmp_path / "seeds.parquet") as writer:
        for seed in SEEDS:
            writer.add(seed)
    write_journal(tmp_path, SEEDS[:9], rejected=SEEDS[:1])
    return tmp_path


def write_journal(folder: Path, seeds: list[Seed], rejected: list[Seed], **more: Any) -> None:
    config = TranslateConfig(seeds=str(folder / "seeds.parquet"), output=str(folder / "tr"), url="http://x/v1", model="m", **more)
    with Journal(config.journal, config.identity()) as journal:
        journal.append([entry_of(seed, 1, "prose") for seed in rejected])
        journal.append([entry_of(seed, 1 + (seed in rejected), "ok") for seed in seeds])


def entry_of(seed: Seed, number: int, outcome: str) -> Entry:
    code = f"func {seed.name}(x int) int {{\n\treturn x\n}}" if outcome == "ok" else ""
    return Entry(seed.id, "Go", number, outcome, code, "", 10, 20, 0.1, "http://x/v1", "m-2026")


def config_of(made: Path, **more: Any) -> ReleaseConfig:
    values = {"output": str(made / "out"), "seeds": str(made / "seeds.parquet"), "translations": str(made / "tr"), **more}
    return ReleaseConfig(**values)


def final_of(made: Path, groups: list[Group], **more: Any) -> ReleaseConfig:
    if not (made / "draft").exists():
        release(config_of(made, output=str(made / "draft")))
    (made / "groups").mkdir(exist_ok=True)
    columns = dict(zip(("id", "group", "kept"), map(list, zip(*groups, strict=True)), strict=True))
    pq.write_table(pa.table(columns), made / "groups" / "part-0.parquet")
    return ReleaseConfig(output=str(made / "out"), draft=str(made / "draft"), duplicates=str(made / "groups"), **more)


def texts(made: Path) -> list[str]:
    return [row["func_documentation_string"] for row in pq.read_table(made / "out" / "synthconl.parquet").to_pylist()]


def numbers(*of: int) -> list[str]:
    return [f"Give thing {i} back." for i in of]


def test_the_released_schema_and_where_each_row_is_from(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(made)
    print_statistics(config, release(config))
    table = pq.read_table(made / "out" / "synthconl.parquet")
    assert table.schema.names[:8] == list(RELEASED)
    assert {str(table.schema.field(name).type) for name in RELEASED} == {"string"}
    row = table.to_pylist()[0]
    assert row == {
        "repository_name": "owner/r0",
        "func_path_in_repository": "/0.py",
        "language2": "Go",
        "func2": "func f0(x int) int {\n\treturn x\n}",
        "language1_CSN": "Python",
        "func1_CSN": "def f0(x):\n    return x + 0",
        "func_documentation_string": "Give thing 0 back.",
        "func_code_url": "",
        "id": SEEDS[0].id,
        "split": "train",
        "license": "MIT",
        "server": "http://x/v1",
        "model": "m-2026",
        "prompt_version": "figure3-1",
        "seed": 0,
    }
    out = capsys.readouterr().out
    assert "train: 6 rows from 3 repositories" in out
    assert "1 left out: not translated" in out


def test_fine_tuning_reads_it_as_it_is(made: Path) -> None:
    release(config_of(made))
    path = made / "out" / "synthconl.parquet"
    assert [len(read_pair_files([path], split)) for split in ("train", "held_out")] == [6, 3]
    pair = read_pair_files([path], "train")[1]
    assert (pair.lang_a, pair.lang_b, pair.code_b) == ("Python", "Go", "func f1(x int) int {\n\treturn x\n}")


def test_statistics_page_and_card(made: Path) -> None:
    release(config_of(made))
    plain = json.loads((made / "out" / "statistics.json").read_text("utf-8"))
    assert plain["rows"] == 9
    assert plain["split"] == {"held_out": 3, "train": 6}
    assert plain["dropped"] == {"not_translated": 1}
    assert plain["tokens"] == {"prompt": 100, "answer": 200}
    assert plain["in_both_splits"] == {"near_duplicate_groups": None, "repositories": 0}
    assert sum(plain["characters_below"]["text"].values()) == 9
    page = (made / "out" / "index.html").read_text("utf-8")
    assert "Rows by target language" in page
    card = (made / "out" / "README.md").read_text("utf-8")
    assert yaml.safe_load(card.split("---")[1])["configs"][0]["data_files"] == "synthconl.parquet"
    assert "9 triplets" in card
    assert "Near-duplicates were not looked for" in card
    assert "http://x/v1" not in card


def test_the_same_inputs_give_the_same_bytes(made: Path) -> None:
    release(config_of(made))
    release(config_of(made, output=str(made / "again")))
    first, second = (sorted((made / name).glob("*")) for name in ("out", "again"))
    same = [a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True) if a.name != "statistics.json"]
    assert same == [True, True, True]


@pytest.mark.parametrize("by_id", [False, True])
def test_one_row_stands_for_each_group(made: Path, by_id: bool) -> None:
    groups = [(0, 0, True), (3, 0, False), (7, 0, False), (6, 6, True), (5, 6, False)]
    named: list[Group] = [(SEEDS[i].id if by_id else i, group, kept) for i, group, kept in groups]
    config = final_of(made, named)
    statistics = release(config)
    assert texts(made) == numbers(0, 1, 2, 4, 6, 8)
    assert statistics.dropped == {"near_duplicate": 3, "not_translated": 1}
    plain = json.loads((made / "out" / "statistics.json").read_text("utf-8"))
    assert plain["in_both_splits"]["near_duplicate_groups"] == 0
    assert plain["tokens"] == {"prompt": 100, "answer": 200}


def test_train_is_not_near_held_out_where_all_rows_are_kept(made: Path) -> None:
    groups: list[Group] = [(0, 0, True), (3, 0, False), (7, 0, False), (1, 1, True), (2, 1, False), (6, 6, True), (8, 6, False)]
    statistics = release(final_of(made, groups, keep_one=False))
    # The group 0 is in both splits: its rows of train go. Groups within one split stay whole.
    assert texts(made) == numbers(1, 2, 4, 5, 6, 7, 8)
    assert statistics.dropped["near_held_out"] == 2
    plain = json.loads((made / "out" / "statistics.json").read_text("utf-8"))
    assert plain["in_both_splits"] == {"near_duplicate_groups": 0, "repositories": 0}


def test_a_group_that_keeps_rows_of_both_splits_keeps_those_held_out(made: Path) -> None:
    statistics = release(final_of(made, [(0, 0, True), (3, 0, False), (7, 0, True), (6, 6, False), (1, 6, True), (2, 6, True)]))
    # Of group 6 the held-out row 6 is removed, so that its rows of train stay.
    assert texts(made) == numbers(1, 2, 4, 5, 7, 8)
    assert statistics.dropped == {"near_duplicate": 2, "near_held_out": 1, "not_translated": 1}
    plain = json.loads((made / "out" / "statistics.json").read_text("utf-8"))
    assert plain["in_both_splits"] == {"near_duplicate_groups": 0, "repositories": 0}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([(0, 0, True), (99, 0, False)], "id: row 99 of a draft of 9 rows"),
    ],
)
def test_groups_that_do_not_fit_are_refused(made: Path, groups: list[Group], message: str) -> None:
    with pytest.raises(MoseError, match=message):
        release(final_of(made, groups))
    assert not (made / "out").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [0], "kept": [True]}, "group: no such column; expected id, group, kept"),
        ({"id": [0.5], "group": [0], "kept": [True]}, "id: column of type double"),
        ({"id": [0], "group": [0], "kept": [1]}, "kept: column of type int64, expected bool"),
    ],
)
def test_a_file_that_holds_no_groups_is_refused(made: Path, columns: dict[str, list[Any]], message: str) -> None:
    config = final_of(made, [(0, 0, True)])
    pq.write_table(pa.table(columns), made / "groups" / "part-0.parquet")
    with pytest.raises(MoseError, match=message):
        release(config)


def test_journals_that_do_not_fit_are_refused(made: Path) -> None:
    write_journal(made, [], [], task=1, num_tasks=2, max_tokens=99)
    with pytest.raises(MoseError, match="max_tokens: is '99', expected '2048' as in journal-00000-of-00001.jsonl"):
        release(config_of(made))
    with SeedWriter(made / "seeds.parquet") as writer:
        writer.add(SEEDS[0])
    with pytest.raises(MoseError, match="seeds: is .*, expected those of .*seeds.parquet"):
        release(config_of(made))
    with pytest.raises(MoseError, match="translations: no journal"):
        release(config_of(made, translations=str(made)))


def test_nothing_translated_leaves_nothing(made: Path) -> None:
    for path in (made / "tr").iterdir():
        path.unlink()
    write_journal(made, [], rejected=SEEDS)
    with pytest.raises(MoseError, match=r"no row is left \(10 rejected_prose\)"):
        release(config_of(made))
    assert not (made / "out").exists()


def test_an_existing_folder_is_not_overwritten(made: Path) -> None:
    release(config_of(made))
    with pytest.raises(FileExistsError, match="already exists"):
        release(config_of(made))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either seeds and translations, or a draft"),
        ({"seeds": "a"}, "either seeds and translations, or a draft"),
        ({"seeds": "a", "translations": "b", "draft": "c"}, "either"),
        ({"seeds": "a", "translations": "b", "duplicates": "d"}, "duplicates: expected a draft"),
    ],
)
def test_options_that_do_not_fit_are_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(MoseError, match=message):
        ReleaseConfig(output="x", **values)


def test_a_draft_that_is_none_is_refused(made: Path) -> None:
    with pytest.raises(MoseError, match="not the statistics of a draft"):
        (made / "draft").mkdir()
        (made / "draft" / "statistics.json").write_text("[]", "utf-8")
        release(ReleaseConfig(output=str(made / "out"), draft=str(made / "draft")))
