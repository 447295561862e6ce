"""stats: statistics equal those counted from every row by hand; the page stands alone, escapes every name, shows each section."""

import re
import shutil
import sys
from collections import Counter, defaultdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.execution.pack import pack_dataset
from data_prep.packing.config import PackingConfig
from data_prep.shards.summary import cautions, print_summary
from data_prep.tools.removal.command import remove
from data_prep.tools.removal.journal import read_removed
from data_prep.tools.removal.removal_list import RemovalList
from data_prep.tools.stats.charts import Bars, Histogram, Mark, Section, amount, histogram_of, share
from data_prep.tools.stats.command import COMMAND
from data_prep.tools.stats.counts import DatasetStatistics, ShardFill, SplitStatistics, count_statistics
from data_prep.tools.stats.drawing import draw_figure, draw_svg, shorten
from data_prep.tools.stats.held_out_copies import count_held_out_copies
from data_prep.tools.stats.page import stats_page
from data_prep.tools.stats.sections import fill_section, mean_of, outliers, stats_sections
from mose.command import run_command
from mose.dataset.manifest import read_manifest
from mose.dataset.shard_format import ShardReader
from mose.files.storage import storage_path
from tests.data_prep.repositories import make_config

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    packing = PackingConfig(sequence_length=128, pool_tokens=4000, piece_tokens=40)
    pack_dataset(make_config(folder, 40, packing=packing))
    return folder / "dataset"


@pytest.fixture(scope="module")
def statistics(dataset: Path) -> DatasetStatistics:
    return count_statistics(dataset, read_manifest(dataset))


def stats(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = run_command("mose-data", "", {"stats": COMMAND}, ["stats", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def by_hand(dataset: Path, split: str) -> tuple[list[int], list[list[dict[str, Any]]]]:
    """Lengths of all rows, from their records, and the lineage of each."""
    manifest = read_manifest(dataset)
    lengths, rows = [], []
    for entry in manifest.shards(split):
        reader = ShardReader(dataset / entry.path, manifest.layout(), entry.rows)
        lengths += reader.labels(np.arange(entry.rows)).num_tokens.tolist()
        reader.close()
        lines = defaultdict(list)
        for line in pq.read_table(dataset / entry.lineage_path).to_pylist():
            lines[line["row"]].append(line)
        rows += [lines[row] for row in range(entry.rows)]
    return lengths, rows


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_statistics_are_those_of_the_rows(dataset: Path, statistics: DatasetStatistics, split: str) -> None:
    lengths, rows = by_hand(dataset, split)
    found, lines = statistics.splits[split], [line for row in rows for line in row]
    assert found.row_tokens.tolist() == [lengths.count(value) for value in range(129)]
    assert (found.rows, found.tokens, found.emptied_rows) == (len(rows), sum(lengths), 0)
    assert found.snippet_tokens.tolist() == [Counter(line["num_tokens"] for line in lines)[value] for value in range(129)]
    assert found.snippets_a_row.tolist() == [Counter(map(len, rows))[value] for value in range(33)]
    assert found.mixed_rows == sum(len({line["repository"] for line in row}) == 2 for row in rows)
    assert found.single_file_rows == sum(len({(line["repository"], line["path"]) for line in row}) == 1 for row in rows)
    assert found.single_snippet_tokens == sum(length for length, row in zip(lengths, rows, strict=True) if len(row) == 1)
    files: Counter[tuple[str, str]] = Counter()
    repositories: Counter[str] = Counter()
    for line in lines:
        files[line["repository"], line["path"]] += line["num_tokens"]
        repositories[line["repository"]] += line["num_tokens"]
    assert found.files == len(files)
    assert found.lone_file_tokens == sum(min(tokens + 2, 128) for tokens in files.values())
    assert (found.repositories, found.largest_repositories) == (len(repositories), repositories)
    assert found.languages == Counter({"Python": sum(files.values())})
    assert found.licences == Counter({"no_license": sum(files.values())})


def test_statistics_agree_with_what_packing_counted(dataset: Path, statistics: DatasetStatistics) -> None:
    for split, counts in read_manifest(dataset).statistics["splits"].items():
        found = statistics.splits[split]
        assert counts["fill"] == pytest.approx(found.tokens / found.rows / 128)
        assert counts["single_snippet_rows"] == found.snippets_a_row[1]
        assert counts["text_tokens"] - counts["dropped_tokens"] == found.text_tokens
        fills = [shard.fill * shard.rows for shard in found.fills]
        assert sum(fills) / found.rows == pytest.approx(counts["fill"])


def test_a_removal_shows_in_the_statistics(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    name = by_hand(copy, "train")[1][0][0]["repository"]
    remove(copy, RemovalList((), (name,)))
    found = count_statistics(copy, read_manifest(copy)).splits["train"]
    lengths, rows = by_hand(copy, "train")
    assert found.emptied_rows == lengths.count(0) == rows.count([]) > 0
    assert name not in found.largest_repositories
    sections = stats_sections(read_manifest(copy), count_statistics(copy, read_manifest(copy)), read_removed(copy))
    assert sections[-1].title == "Removals"
    assert sections[-1].rows[0][1:3] == ("0", "1")


def test_a_sample_counts_a_part(dataset: Path, statistics: DatasetStatistics) -> None:
    some = count_statistics(dataset, read_manifest(dataset), 0.4)
    assert 0 < some.counted_shards < some.shards == statistics.counted_shards
    assert 0 < some.splits["train"].rows < statistics.splits["train"].rows
    text = stats_sections(read_manifest(dataset), some)[0].text
    assert f"{some.counted_shards} of {some.shards} shards" in text


def test_the_tables_are_printed(dataset: Path, statistics: DatasetStatistics, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, error = stats(capsys, dataset)
    assert (code, error) == (0, "")
    for section in stats_sections(read_manifest(dataset), statistics):
        assert section.title in printed
    train = statistics.splits["train"]
    assert f"{train.text_tokens:,}" in printed
    assert f"{train.lone_file_tokens / train.files:,.0f}" in printed
    code, quick, _ = stats(capsys, dataset, "--quick")
    assert code == 0
    assert "packed dense" in quick
    assert "Row length" not in quick


class Checker(HTMLParser):
    """Counts elements, and notes what would be fetched or run, and tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.outside: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        names = dict(attrs)
        self.outside += [tag] if tag in ("script", "link", "img", "iframe") else []
        self.outside += [f"{tag} {name}" for name in names if name in ("src", "href", "onclick", "onload")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_has_each_figure_with_its_table(
    dataset: Path, statistics: DatasetStatistics, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, _ = stats(capsys, dataset, "--output", tmp_path / "page.html")
    assert code == 0
    assert printed.endswith(f"page: {tmp_path / 'page.html'}\n")
    page = (tmp_path / "page.html").read_text("utf-8")
    checker = Checker()
    checker.feed(page)
    manifest = read_manifest(dataset)
    sections = stats_sections(manifest, statistics, copies=count_held_out_copies(dataset, manifest))
    assert (checker.outside, checker.open) == ([], [])
    assert checker.tags["svg"] == sum(section.chart is not None for section in sections)
    assert checker.tags["section"] == checker.tags["table"] == len(sections)
    for section in sections:
        for row in section.rows:
            assert all(f"<td>{cell}</td>" in page for cell in row if "<" not in cell)
    assert "http" not in re.sub(r'xmlns(:xlink)?="http://www.w3.org/[0-9a-z/]+"', "", page)


def test_names_are_escaped_and_control_characters_written_out() -> None:
    nasty = '<script>alert("1")</script>&\x1b[2J'
    section = Section(nasty, nasty, (nasty, "n"), ((nasty, "1"),), Bars(nasty, ((nasty, 1.0),)))
    page = stats_page(nasty, [nasty], [nasty], [section])
    assert "<script" not in page
    assert "&lt;script&gt;alert(&quot;1&quot;)" in page
    checker = Checker()
    checker.feed(page)
    assert (checker.outside, checker.open) == ([], [])


def test_the_picture_is_a_png(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert stats(capsys, dataset, "--output", tmp_path / "page.png")[0] == 0
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["page.png", "page.html"])
def test_a_page_or_picture_without_matplotlib_is_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, error = stats(capsys, dataset, "--output", tmp_path / name)
    assert (code, error.count("\n")) == (2, 1)
    assert f"{name}: output: a {Path(name).suffix} needs matplotlib, which is not installed" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--output=page.pdf"], "page.pdf: output: expected a name in .html or .png"),
        (["--output=page.html", "--quick"], "output: and quick: are both given"),
        (["--sample=0"], "sample: is 0.0, expected a share above 0"),
    ],
)
def test_bad_options(dataset: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    code, printed, error = stats(capsys, dataset, *words)
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert expected in error


def test_a_data_set_on_an_object_store(dataset: Path, statistics: DatasetStatistics) -> None:
    remote = storage_path("memory://counted/dataset")
    for path in dataset.rglob("*"):
        if path.suffix in (".json", ".parquet", ".npy"):
            (remote / path.relative_to(dataset).as_posix()).write_bytes(path.read_bytes())
    found = count_statistics(remote, read_manifest(remote)).splits["train"]
    assert found.tokens == statistics.splits["train"].tokens
    assert found.licences == statistics.splits["train"].licences


def test_bars_are_as_long_as_their_amounts() -> None:
    chart = Bars("bytes", (("a & b", 50.0), ("c" * 60, 200.0), ("nothing", 0.0), ("$x$", 1.0)))
    bars = draw_figure(chart).axes[0].patches
    assert [bar.get_width() for bar in bars] == [50.0, 200.0, 0.0, 1.0]  # type: ignore[attr-defined]
    assert all(bar.get_linewidth() > 0 for bar in bars)
    picture = ElementTree.fromstring(draw_svg(chart))
    labels = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"a & b", shorten("c" * 60, 30), "nothing", "$x$", "bytes", "50", "200", "0"} <= set(labels)
    assert [title.text for title in picture.iter(f"{SVG}title")] == ["c" * 60]


def test_a_histogram_has_a_bar_for_each_bin_and_a_dashed_line_for_each_mark() -> None:
    chart = Histogram("tokens", "rows", (0.0, 10.0, 20.0, 30.0), (5, 0, 10), (Mark(15.0, "mean"),))
    (axis,) = draw_figure(chart).axes
    bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in axis.patches]  # type: ignore[attr-defined]
    assert bars == [(0.0, 10.0, 5), (10.0, 10.0, 0), (20.0, 10.0, 10)]
    (line,) = axis.lines
    assert (line.get_linestyle(), list(line.get_xdata())) == ("--", [15.0, 15.0])  # type: ignore[arg-type]
    picture = ElementTree.fromstring(draw_svg(chart))
    assert {"mean 15", "tokens", "rows"} <= {text.text for text in picture.iter(f"{SVG}text")}


def test_a_chart_has_the_same_bytes_in_every_run() -> None:
    chart = Histogram("tokens", "rows", (0.0, 10.0, 20.0), (5, 10), (Mark(15.0, "mean"),))
    assert draw_svg(chart) == draw_svg(chart)
    assert "date" not in draw_svg(chart).lower()


def test_histograms_keep_every_count() -> None:
    counts = list(range(1, 131))
    chart = histogram_of(counts, 1, 4, "tokens", "rows", Mark(0, ""))
    assert sum(chart.counts) == sum(counts)
    assert chart.counts[0] == 1 + 2 + 3 + 4
    assert (chart.edges[0], chart.edges[1], chart.edges[-1]) == (1, 5, 133)
    assert histogram_of([3, 4], 0, 1, "", "", Mark(0, "")).edges == (-0.5, 0.5, 1.5)


def test_numbers_for_people() -> None:
    assert [amount(value) for value in (0, 7, 2.25, 1990.3, 12_345, 4_560_000, 3e9, 1.2e12)] == [
        "0",
        "7",
        "2.25",
        "1,990",
        "12.3 k",
        "4.56 M",
        "3 G",
        "1.2 T",
    ]
    assert [share(*pair) for pair in ((1, 0), (0, 9), (1, 2), (1, 2000), (1, 10**9))] == [
        "-",
        "0.0%",
        "50.0%",
        "0.05%",
        "<0.001%",
    ]
    assert mean_of(np.array([0, 2, 2])) == 1.5
    assert mean_of(np.array([2, 2]), 1) == 1.5
    assert mean_of(np.zeros(4, np.int64)) == 0


def test_outliers_are_named_and_ordinary_spread_is_not() -> None:
    ordinary = [ShardFill(f"train/shard-{i:06d}.tar", 100, 0.97 + 0.001 * (i % 7)) for i in range(50)]
    assert outliers(ordinary) == []
    strange = [ShardFill("train/shard-000098.tar", 7, 0.5), ShardFill("train/shard-000099.tar", 9, 0.8)]
    assert outliers([*ordinary, *reversed(strange)]) == strange
    section = fill_section([*ordinary, *strange], "train")
    assert ("outlier: train/shard-000098.tar", "50.00%", "7 rows") in section.rows
    assert "2 stand out" in section.text
    assert fill_section([], "train").chart is None


def test_a_data_set_without_rows_in_a_split_can_be_told(dataset: Path) -> None:
    empty = SplitStatistics(np.zeros(129, np.int64), np.zeros(129, np.int64))
    sections = stats_sections(read_manifest(dataset), DatasetStatistics({"train": empty, "held_out": empty}, 128, 0, 0))
    assert re.search("0 repositories", "".join(section.text for section in sections))
    for section in sections:
        if section.chart:
            ElementTree.fromstring(draw_svg(section.chart))


def test_stats_show_the_statistics_of_the_manifest(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(dataset)
    print_summary(manifest)
    printed = capsys.readouterr().out
    counts = manifest.statistics["splits"]["train"]
    for text in (f"{counts['rows']:,}", f"{counts['fill']:.1%}", f"{counts['mixed_share']:.1%}", "Python", "packed dense"):
        assert text in printed


def test_stats_warn_of_unbalanced_labels_and_unusable_repositories() -> None:
    split = {"mixed_share": 0.5, "repositories": 9}
    statistics = {
        "wanted_mixed_share": 0.5,
        "splits": {"train": split, "held_out": {"mixed_share": 0.1, "repositories": 1}},
        "unusable_repositories": 0,
        "unusable_examples": [],
    }
    assert cautions(statistics) == ["held_out: 10.0% of rows are mixed, from 1 repositories in use"]
    statistics = {**statistics, "splits": {"train": split}, "unusable_repositories": 2, "unusable_examples": ["a", "b"]}
    assert cautions(statistics) == ["2 repositories have no usable file, among them a, b"]
