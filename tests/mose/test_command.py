"""Covers the four commands' common part: bad input as one line and exit code 2, `--debug`, unknown keys."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser, Namespace

from mose.command import LONGEST_MESSAGE, Command, add_config, one_line, read_config, run_command
from mose.config import require
from mose.errors import MoseError


@dataclass(frozen=True)
class Shape:
    """A section."""

    width: int = 8
    """Width."""

    def __post_init__(self) -> None:
        require(self.width % 2 == 0, f"shape.width: {self.width} is odd, expected an even number")


@dataclass(frozen=True)
class Config:
    """The whole."""

    shape: Shape = field(default_factory=Shape)
    name: str = "x"
    """Name."""


def add_arguments(parser: ArgumentParser) -> None:
    add_config(parser, Config)
    parser.add_argument("--loud", action="store_true", help="Loud.")


def show(parsed: Namespace) -> int | None:
    config = read_config(parsed, Config)
    print(config.shape.width, config.name, parsed.loud)
    return None


def fail(parsed: Namespace) -> int | None:
    raise MoseError("file.yaml: field: wrong,\nexpected right")


COMMANDS = {"show": Command("Show it.", add_arguments, show), "fail": Command("Fail.", lambda parser: None, fail)}


def run(*words: str) -> int:
    return run_command("mose-test", "A test.", COMMANDS, words)


def test_config_file_then_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("shape: {width: 4}\nname: y\n")
    assert run("show", "--config", str(path), "--shape.width", "6", "--loud") == 0
    assert capsys.readouterr().out == "6 y True\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shape: {wdth: 4}", "unknown key 'shape.wdth'; expected one of: shape.width"),
        ("shape: {width: wide}", "shape.width: Expected a int. Got value: wide"),
        ("shape: {width: 3}", "a.yaml: shape.width: 3 is odd, expected an even number"),
        ("nme: z", "unknown key 'nme'; expected one of: name"),
    ],
)
def test_wrong_values_are_one_line(text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert run("show", "--config", str(path)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("mose-test: error: ")
    assert expected in error


@pytest.mark.parametrize("words", [("show", "--config", "nowhere.yaml"), ("shwo",), ("show", "--nme", "z"), ("fail",)])
def test_bad_command_lines_are_one_line(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_error_of_the_command_keeps_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fail") == 2
    assert capsys.readouterr().err == "mose-test: error: file.yaml: field: wrong, expected right\n"


def test_debug_raises() -> None:
    with pytest.raises(MoseError):
        run("fail", "--debug")


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("show", "--name", "s3://KEY:SECRET@bucket/x"), "name: 's3://***@bucket/x' holds a credential"),
        (("show", "--shape.width", "https://u:SECRET@h/"), "https://***@h/"),
        (("show", "--config", "https://SECRET@h/a.yaml"), "https://***@h/a.yaml"),
        (("show", "--config", "\x1b[2J\u202e.yaml"), "\\x1b[2J\\u202e.yaml"),
    ],
)
def test_no_error_shows_a_credential_or_controls_the_terminal(
    words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error
    assert not {"SECRET", "\x1b", "\u202e"} & {error[i : i + n] for n in (1, 6) for i in range(len(error))}


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: Namespace) -> None:
        raise KeyboardInterrupt

    assert run_command("p", "", {"x": Command("X.", lambda _: None, interrupted)}, ["x"]) == 130
    assert capsys.readouterr().err == "p: interrupted\n"


def test_a_long_message_keeps_its_end() -> None:
    text = one_line(MoseError(f"{'x/' * 3000}: folder cannot be read: File name too long"))
    assert len(text) == LONGEST_MESSAGE
    assert text.startswith("x/x/")
    assert text.endswith(": folder cannot be read: File name too long")
