"""What is printed or drawn cannot control a terminal, and no message, config or versions file holds a credential."""

import ast
import contextlib
import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from mose.files.streams import (
    EscapingStream,
    cover_streams,
    escaped,
    escaped_parts,
    escaping_streams,
    make_console,
    presentable,
    progress_bar,
    without_credentials,
)

ROOT = Path(__file__).parents[3]
# Clear the screen; title of the window; right-to-left override; return over the line; 8-bit CSI; a name that is not UTF-8.
ATTACKS = ["\x1b[2J", "\x1b]0;owned\x07", "\u202eexe.py", "fine\rbad", "\x9b31m", "\udcff"]
UNSAFE = set("\x1b\x07\x9b\r\u202e\udcff")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text", ATTACKS)
def test_print_cannot_control_a_terminal(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with escaping_streams():
        print(f"name {text}")
        print(text, file=sys.stderr)
        sys.stderr.writelines([text])
    for written in (out.getvalue(), err.getvalue()):
        assert not UNSAFE & set(written)
        assert escaped(text) in written
    assert sys.stdout is out


@pytest.mark.parametrize("text", ATTACKS)
def test_rich_draws_its_own_sequences_and_none_of_the_text(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with escaping_streams():
        console = make_console(stderr=True, force_terminal=True, width=60)
        table = Table("[bold]name[/bold]", title="a table")
        table.add_row(text)
        console.print(table, style="red")
        with progress_bar(console=console) as bar:
            bar.add_task(text, total=3)
            print(f"beside the bar: {text}")
    shown = terminal.getvalue()
    assert "\x1b[31m" in shown  # of rich
    assert "[bold]name" in shown
    assert not {text, *(UNSAFE & set(text)) - set("\x1b\r")} & {
        shown[i : i + n] for n in (1, len(text)) for i in range(len(shown))
    }
    assert escaped(text) in shown


def test_an_exception_that_leaves_finds_the_streams_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with contextlib.suppress(ValueError), escaping_streams():
        raise ValueError
    assert isinstance(sys.stderr, EscapingStream)
    stream = sys.stderr
    cover_streams()
    assert sys.stderr is stream
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)


@given(st.text())
def test_escaping_is_idempotent_and_keeps_what_is_safe(text: str) -> None:
    assert escaped(escaped(text)) == escaped(text)
    assert "".join(part for part, _ in escaped_parts(text)) == escaped(text)
    assert all(character in "\n\t" or character.isprintable() or ord(character) > 0x9F for character in escaped(text))


SECRETS = [
    ("s3://AKIAKEY:wJalr/XUtn+FEMI@bucket/data", "s3://***@bucket/data"),
    ("https://ghp_token@github.com/a/b.git", "https://***@github.com/a/b.git"),
    ("https://user:pa@ss@host:8080/x@v1", "https://***@host:8080/x@v1"),
    (
        "https://bucket.s3.amazonaws.com/k?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=abc&x=1",
        "?X-Amz-Credential=***&X-Amz-Signature=***&x=1",
    ),
    ("https://account.blob.core.windows.net/c?sv=2020&sig=a%2Bb", "?sv=2020&sig=***"),
    ("redis://:secret@host:6379", "redis://***@host:6379"),
    ("cannot open 'hf://x:TOKEN@y/z' or http://h/?access_token=T", "cannot open 'hf://***@y/z' or http://h/?access_token=***"),
]
PLAIN = [
    "s3://bucket/folder", "http://127.0.0.1:9000/a@b", "abfs://container@account.dfs.core.windows.net/x", "ssh://git@host/x",
    "/data/a:b@c", "hdfs://namenode:8020/user/a@b", "https://host/?page=2&tokens=5", "C:\\data", "memory://x",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), SECRETS)
def test_credentials_are_hidden_and_the_rest_stays(text: str, expected: str) -> None:
    hidden = presentable(f"error: {text}: no such file")
    assert expected in hidden
    assert hidden.endswith(": no such file")
    assert without_credentials(hidden) == hidden


@pytest.mark.parametrize("text", PLAIN)
def test_urls_without_credentials_stay(text: str) -> None:
    assert without_credentials(text) == text


PACKAGES = ("mose", "data_prep", "pretrain", "finetune", "cluster")
DRAWS = {
    "rich.console.Console",
    "rich.progress.Progress",
    "rich.progress.track",
    "rich.live.Live",
    "rich.print",
    "rich.get_console",
}


def bypasses(tree: ast.Module) -> list[str]:
    """Calls of rich's own consoles and bars, and uses of the streams behind ours."""
    nodes = list(ast.walk(tree))
    names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    calls = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    bare = [
        node.attr for node in nodes if isinstance(node, ast.Attribute) and node.attr in ("__stdout__", "__stderr__", "buffer")
    ]
    return [name for name in calls if names.get(name, name) in DRAWS] + bare


def test_no_file_goes_past_the_streams() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "streams.py"]
    assert {str(path): found for path in paths if (found := bypasses(ast.parse(path.read_text("utf-8"))))} == {}
    for source in (
        "from rich.console import Console as C\nC().print(1)",
        "import rich\nrich.print(1)",
        "sys.stdout.buffer.write(b'')",
    ):
        assert len(bypasses(ast.parse(source))) == 1
