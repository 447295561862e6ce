"""inspect: the row that is printed is the row that is stored, and says where it comes from; no text can control the terminal."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data_prep.cli import commands
from data_prep.console import visible
from data_prep.execution.pack import pack_dataset
from data_prep.shards.rows import key_of, locate, row_of_key
from data_prep.sources.registry import SourcesConfig
from data_prep.tools.inspect_row import COMMAND, show_row
from data_prep.tools.removal.command import remove
from data_prep.tools.removal.removal_list import RemovalList
from mose.command import run_command
from mose.dataset.manifest import read_manifest
from mose.errors import MoseError
from mose.files.storage import storage_path
from mose.files.streams import escaped
from mose.tokenizer import load_tokenizer
from tests.data_prep.repositories import make_config


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack_dataset(make_config(folder, 40))
    return folder


def inspect(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = run_command("mose-data", "", {"inspect": COMMAND}, ["inspect", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_row_is_shown_with_the_text_and_place_of_each_snippet(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(packed / "dataset")
    row = manifest.shards("train")[0].rows + 1
    show_row(packed / "dataset", "train", row)
    printed = capsys.readouterr().out
    entry = manifest.shards("train")[1]
    assert printed.startswith(f"train row {row}: {entry.path} row 1, key {key_of(entry, 1)}\nlabel: mixed ")
    lines = [line for line in pq.read_table(packed / "dataset" / entry.lineage_path).to_pylist() if line["row"] == 1]
    assert printed.count("<sep>") == len(lines)
    for line in lines:
        content = (packed / "repositories" / line["repository"] / line["path"].lstrip("/")).read_bytes()
        assert content[line["start_byte"] : line["end_byte"]].decode() in printed
        assert f"<sep> {line['repository']} {line['path']} (Python, no_license, bytes {line['start_byte']} to " in printed


def test_label_fill_and_padding_are_those_of_the_index(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = packed / "dataset"
    entry = read_manifest(dataset).shards("train")[0]
    lines = pq.read_table(dataset / entry.lineage_path).to_pylist()
    row = next(line["row"] for line in lines if line["num_tokens"] < 60)
    mine = [line for line in lines if line["row"] == row]
    tokens = sum(line["num_tokens"] + 1 for line in mine) + 1
    mixed = int(len({line["repository"] for line in mine}) == 2)
    printed = inspect(capsys, dataset, "--row", row)[1].splitlines()[1]
    assert printed.startswith(f"label: mixed {mixed}; {len(mine)} snippet")
    assert f"{tokens} of 128 slots filled" in printed
    assert printed.endswith(f"{128 - tokens} padding")


def test_a_row_is_found_by_its_webdataset_key(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(packed / "dataset")
    first, second = manifest.shards("train")[:2]
    assert row_of_key(manifest, "train", key_of(second, 3)) == first.rows + 3
    by_key = inspect(capsys, packed / "dataset", "--key", key_of(second, 3))
    by_row = inspect(capsys, packed / "dataset", "--row", first.rows + 3)
    assert by_key == by_row
    assert by_key[0] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--row=100000"], "row: is 100000, expected 0 to "),
        (["--split=test"], "split 'test' has no rows"),
        (["--key=3-4"], "key: is '3-4', expected shard and row such as 000003-000000123"),
        (["--key=000099-000000000"], "key: 000099-000000000: no such row in train"),
        (["--key=000000-000999999"], "key: 000000-000999999: no such row in train"),
        (["--row=1", "--key=000000-000000000"], "row: and key: are both given"),
    ],
)
def test_bad_input_is_one_line(packed: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    code, printed, error = inspect(capsys, packed / "dataset", *words)
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert expected in error


def test_row_numbers_run_through_the_shards(packed: Path) -> None:
    manifest = read_manifest(packed / "dataset")
    first, second = manifest.shards("train")[:2]
    assert locate(manifest, "train", 0) == (first, 0)
    assert locate(manifest, "train", first.rows - 1) == (first, first.rows - 1)
    assert locate(manifest, "train", first.rows) == (second, 0)
    with pytest.raises(MoseError, match=rf"row: is {manifest.rows('train')}, expected 0 to {manifest.rows('train') - 1}"):
        locate(manifest, "train", manifest.rows("train"))
    with pytest.raises(MoseError, match="split 'test' has no rows"):
        locate(manifest, "test", 0)


def test_tokens_are_shown_with_their_pieces(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(packed / "dataset")
    printed = inspect(capsys, packed / "dataset", "--row", 0, "--tokens")[1]
    shown = [cell for line in printed.splitlines() if line.startswith("  slot ") for cell in line.split("  ") if ":" in cell]
    assert len(shown) > 50
    for cell in shown:
        token, _, piece = cell.strip().partition(":")
        assert tokenizer.piece(int(token)) == piece


def test_colours_on_a_terminal_one_for_each_repository(packed: Path) -> None:
    dataset = packed / "dataset"
    lines = pq.read_table(dataset / read_manifest(dataset).shards("train")[0].lineage_path).to_pylist()
    names: dict[int, set[str]] = {}
    for line in lines:
        names.setdefault(line["row"], set()).add(line["repository"])
    for wanted, colours in ((2, {"\x1b[1;36m", "\x1b[1;35m"}), (1, {"\x1b[1;36m"})):
        row = next(row for row, found in names.items() if len(found) == wanted)
        console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", highlight=False, soft_wrap=True)
        show_row(dataset, "train", row, console=console)
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        assert {colour for colour in ("\x1b[1;36m", "\x1b[1;35m") if colour in printed} == colours


def test_control_characters_are_written_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "x = 1\x1b[2J\x1b]0;title\x07\r\n\ty = '\u202egnp.exe\u2066\x9b31m\x08'\n"
    for number in range(12):
        folder = tmp_path / "repositories" / f"r{number:02d}"
        folder.mkdir(parents=True)
        (folder / "a.py").write_text(f"# {number}\n{nasty}", "utf-8", newline="")
    config = make_config(tmp_path, sources=SourcesConfig(directories=(str(tmp_path / "repositories"),)))
    pack_dataset(config)
    printed = inspect(capsys, tmp_path / "dataset", "--row", 0)[1]
    assert "x = 1\\x1b[2J\\x1b]0;title\\x07\\r\n\ty = '\\u202egnp.exe\\u2066\\x9b31m\\x08'\n" in printed
    assert not set(printed) & set("\x1b\x07\x08\r\x9b\u202e\u2066")


def test_only_what_is_unsafe_is_written_out() -> None:
    text = "naïve \u00e9 漢字 \U0001f389 \t\n"
    assert escaped(text) == text
    assert visible(text, "").plain == text
    assert escaped("a\x7fb\u2028") == "a\\x7fb\\u2028"


def test_an_emptied_row_says_so(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Path(shutil.copytree(packed / "dataset", tmp_path / "dataset"))
    lines = pq.read_table(dataset / "train/lineage-000000.parquet").to_pylist()
    blobs = {line["blob_id"] for line in lines if line["row"] == 0}
    remove(dataset, RemovalList(tuple(sorted(blobs))))
    code, printed, _ = inspect(capsys, dataset, "--row", 0)
    assert code == 0
    assert printed.splitlines()[1] == "emptied: its files were removed; all 128 slots are <pad>"


def test_a_data_set_on_an_object_store(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remote = storage_path("memory://inspected/dataset")
    for path in (packed / "dataset").rglob("*"):
        if path.is_file():
            (remote / path.relative_to(packed / "dataset").as_posix()).write_bytes(path.read_bytes())
    assert inspect(capsys, "memory://inspected/dataset", "--row", 2) == inspect(capsys, packed / "dataset", "--row", 2)


def test_a_damaged_row_is_one_line(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Path(shutil.copytree(packed / "dataset", tmp_path / "dataset"))
    layout, shard = read_manifest(dataset).layout(), dataset / "train" / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[layout.json_offset : layout.json_offset + 4] = b"what"
    content[layout.stride + layout.token_offset + 254 : layout.stride + layout.token_offset + 256] = b"\x09\x00"
    shard.write_bytes(content)
    assert "row 0: its .json member is damaged" in inspect(capsys, dataset, "--row", 0)[2]
    assert "row 1: last slot is 9, expected <cls>" in inspect(capsys, dataset, "--row", 1)[2]
    shard.unlink()
    assert "no such shard, but the manifest lists it" in inspect(capsys, dataset, "--row", 0)[2]


def test_a_reader_that_has_seen_enough_is_no_error(packed: Path) -> None:
    line = [sys.executable, "-m", "data_prep.cli", "inspect", str(packed / "dataset"), "--tokens"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)


def test_the_commands_are_registered() -> None:
    assert {"inspect", "lineage", "remove", "stats", "verify"} <= commands().keys()
