"""`mose-data seeds`: what is written, counted and split; CodeSearchNet's files; seeds files that cannot be used."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources.registry import SourcesConfig
from data_prep.sources.repositories import split_of
from data_prep.synthconl.mining.seed_file import Seed, SeedWriter, count_seeds, read_seeds
from data_prep.synthconl.mining.seeds import SeedsConfig, mine_seeds, print_counts
from mose.dataset.pairs import read_pairs
from mose.errors import MoseError
from tests.data_prep.stack_rows import stack_file, write_repositories


def python(name: str, text: str) -> str:
    return f'def {name}(x):\n    """{text}"""\n    y = x\n    return y, "{name}"\n\n'


def go(name: str, text: str) -> str:
    return f'// {text}\nfunc {name}(a int) string {{\n\tb := a\n\treturn "{name}"\n}}\n\n'


def repositories(folder: Path) -> Path:
    rows = [
        (
            f"owner/r{i}",
            [
                stack_file("/a.py", python(f"f{i}", f"Do the thing {i} now.") + python("few", "Two words")),
                stack_file("/b.go", "package b\n\n" + go(f"G{i}", f"G{i} gives it.") + go("Same", "Same in all."), language="Go"),
            ],
        )
        for i in range(12)
    ]
    return write_repositories(folder / "stack.parquet", rows, with_content=True)


def config_of(folder: Path, **more: object) -> SeedsConfig:
    sources = SourcesConfig(stack_v2=(str(repositories(folder)),))
    values = {"sources": sources, "held_out_fraction": 0.3, **more}
    return SeedsConfig(output=str(folder / "seeds.parquet"), **values)  # type: ignore[arg-type]


def test_functions_of_repositories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path)
    counts = mine_seeds(config)
    seeds = list(read_seeds(tmp_path / "seeds.parquet"))
    assert len(seeds) == counts.kept == count_seeds(tmp_path / "seeds.parquet") == 25
    assert counts.outcomes["Python"] == {"kept": 12, "short_documentation": 12}
    assert counts.outcomes["Go"] == {"kept": 13, "repeated_documentation": 11}
    assert all(seed.split == split_of(seed.repository, 0, 0.3) for seed in seeds)
    assert {seed.split for seed in seeds} == {"train", "held_out"}
    assert {seed.licence for seed in seeds} == {"MIT"}
    assert len({seed.id for seed in seeds}) == 25
    assert json.loads((tmp_path / "seeds.json").read_text("utf-8")) == counts.to_plain()
    print_counts(config, counts)
    assert "languages: Go 13, Python 12" in capsys.readouterr().out


def test_the_file_is_one_of_pairs(tmp_path: Path) -> None:
    mine_seeds(config_of(tmp_path))
    pairs = read_pairs(tmp_path / "seeds.parquet", "train")
    assert {(pair.code_b, pair.lang_b) for pair in pairs} == {("", "")}
    assert {pair.lang_a for pair in pairs} == {"Go", "Python"}


def test_the_same_input_gives_the_same_bytes_and_the_limit_a_sample(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in "ab":
        mine_seeds(config_of(tmp_path / name, max_per_repository=1, languages=("Go", "Python")))
    first, second = (tmp_path / name / "seeds.parquet" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert len(list(read_seeds(first))) == 12


def test_one_language_only(tmp_path: Path) -> None:
    mine_seeds(config_of(tmp_path, languages=("Go",)))
    assert {seed.lang_a for seed in read_seeds(tmp_path / "seeds.parquet")} == {"Go"}


def line(number: int, partition: str, **more: object) -> str:
    row = {
        "repo": f"owner/r{number}",
        "path": "a.py",
        "func_name": f"Table.read{number}",
        "code": python(f"read{number}", f"Read the table {number}."),
        "docstring": f"Read the table {number}.\n\nMore of it.",
        "language": "python",
        "partition": partition,
        "url": f"https://example.org/{number}",
    }
    return json.dumps({**row, **more}) + "\n"


def test_code_search_net_as_it_is_on_disk(tmp_path: Path) -> None:
    java = {"language": "java", "docstring": "Reads <p>one</p> {@link Row}.\n@param a b", "code": "int f() {\n return 1;\n}"}
    text = (
        line(0, "train") + line(1, "test") + line(2, "valid") + line(3, "train", **java) + line(4, "train", docstring="Two words")
    )
    (tmp_path / "python_train.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    config = SeedsConfig(output=str(tmp_path / "seeds.parquet"), code_search_net=(str(tmp_path / "*.jsonl.gz"),))
    counts = mine_seeds(config)
    seeds = list(read_seeds(tmp_path / "seeds.parquet"))
    assert [seed.split for seed in seeds] == ["train", "held_out", "held_out", "train"]
    assert seeds[0].nl == "Read the table 0."
    assert "Read the table" not in seeds[0].code_a
    assert (seeds[0].name, seeds[0].url) == ("read0", "https://example.org/0")
    assert (seeds[3].nl, seeds[3].lang_a) == ("Reads one Row.", "Java")
    assert counts.outcomes["Python"]["short_documentation"] == 1


def test_partitions_can_be_split_anew(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(line(i, "test") for i in range(20)), "utf-8")
    config = SeedsConfig(
        output=str(tmp_path / "seeds.parquet"),
        code_search_net=(str(tmp_path / "a.jsonl"),),
        keep_partition=False,
        held_out_fraction=0.3,
    )
    mine_seeds(config)
    assert {seed.split for seed in read_seeds(tmp_path / "seeds.parquet")} == {"train", "held_out"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n", "line 1: not JSON"),
        ('{"docstring": "x"}\n', "line 1: code: None, expected text"),
        (line(0, "train", docstring=""), "none of 1 function passes the rules"),
    ],
)
def test_files_that_give_nothing_are_refused_and_nothing_is_written(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(text, "utf-8")
    with pytest.raises(MoseError, match=message):
        mine_seeds(SeedsConfig(output=str(tmp_path / "out" / "seeds.parquet"), code_search_net=(str(tmp_path / "a.jsonl"),)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "sources: is empty, and so is code_search_net"),
        ({"code_search_net": ("x",), "languages": ("Latin",)}, "'Latin' has no grammar"),
        ({"code_search_net": ("x",), "held_out_fraction": 1.0}, "held_out_fraction"),
        ({"code_search_net": ("x",), "max_per_repository": -1}, "max_per_repository"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(MoseError, match=message):
        SeedsConfig(output="x", **values)  # type: ignore[arg-type]


def test_a_missing_file_of_code_search_net_is_named(tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"none\*\.jsonl: code_search_net: no such file"):
        mine_seeds(SeedsConfig(output=str(tmp_path / "x"), code_search_net=(str(tmp_path / "none*.jsonl"),)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"nl": ["a"], "code_a": ["b"]}, "lang_a: no such column"),
        ({"nl": ["a"], "code_a": [1], "lang_a": ["C"]}, "code_a: column of type int64"),
        ({"nl": ["a", " "], "code_a": ["b", "b"], "lang_a": ["C", "C"]}, "nl: row 1 is empty"),
        ({"nl": ["a"], "code_a": [None], "lang_a": ["C"]}, "code_a: column of type null|row 0 is empty"),
    ],
)
def test_a_seeds_file_that_cannot_be_used_is_one_line(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "seeds.parquet")
    with pytest.raises(MoseError, match=message):
        list(read_seeds(tmp_path / "seeds.parquet"))


def test_a_file_that_is_no_parquet_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "seeds.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(MoseError, match="not a readable parquet file of seeds"):
        count_seeds(tmp_path / "seeds.parquet")


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), SeedWriter(tmp_path / "seeds.parquet") as writer:
        writer.add(Seed("a", "b", "C"))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
