"""The common part of all commands: subcommands from config classes, and bad input as one line and exit code 2."""

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from mose.errors import MoseError, first_line
from mose.files.streams import escaping_streams, without_credentials
from mose.files.yaml_file import check_yaml

BAD_INPUT = 2
# A run whose steps diverged: a restart with the same config would end the same way.
DIVERGED = 3
# EX_TEMPFAIL of sysexits.h: a run that received a stop signal and saved; the same command resumes it. SLURM can requeue on it.
STOPPED = 75
# 128 + SIGINT, as shells report a program that Ctrl-C ended.
INTERRUPTED = 130
LONGEST_MESSAGE = 1000
Config = TypeVar("Config")


@dataclass(frozen=True)
class Command:
    """One subcommand: its line in `--help`, its arguments, and its function, which returns an exit code or None (0)."""

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]


def run_command(program: str, description: str, commands: dict[str, Command], arguments: Sequence[str] | None = None) -> int:
    """Parse `arguments` (default: the process's own), run the subcommand, and return the exit code.

    Bad input (`MoseError`, unknown keys, wrong types, unreadable files) prints one line on standard error and returns 2;
    `--debug` raises it with its traceback instead.
    """
    with escaping_streams():
        return _run_command(program, description, commands, list(sys.argv[1:] if arguments is None else arguments))


def _run_command(program: str, description: str, commands: dict[str, Command], words: list[str]) -> int:
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = _dispatch(program, description, commands, words)
        # Short output is written only now: a reader that has exited must be noticed here, not at the interpreter's own flush.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output (head, less) has exited. Without this, Python would fail once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"{program}: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except (MoseError, ArgumentError, OSError) as error:
        if debug:
            raise
        print(f"{program}: error: {one_line(error, words, commands)}", file=sys.stderr, flush=True)
        return BAD_INPUT


def _dispatch(program: str, description: str, commands: dict[str, Command], words: list[str]) -> int:
    parser = ArgumentParser(prog=program, description=description, exit_on_error=False)
    group = parser.add_subcommands(metavar="COMMAND")
    # Only the options of the command that is asked for: building those of all, and importing what they need, takes seconds.
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, command in commands.items():
        # Filled after it was added: jsonargparse requires that a command's own subcommands are added later than the command.
        subparser = ArgumentParser(description=command.summary, exit_on_error=False)
        group.add_subcommand(name, subparser, help=command.summary)
        if name == chosen:
            _fill(subparser, command)
    if not words:
        parser.print_help()
        return BAD_INPUT
    check_configs(words)
    parsed = parser.parse_args(words)
    name = parsed.subcommand
    return commands[name].run(parsed[name]) or 0


def check_configs(words: Sequence[str]) -> None:
    """Check every config file that `words` name before a parser expands it.

    Raises:
        MoseError: one is too large, too deep or not YAML; a file that is missing is left to the parser's own message.
    """
    for index, word in enumerate(words):
        if _is_config(words, index) and (path := Path(word.removeprefix("--config="))).is_file():
            check_yaml(path)


def _fill(parser: ArgumentParser, command: Command) -> ArgumentParser:
    command.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error instead of one line.")
    return parser


def one_line(error: BaseException, words: Sequence[str] = (), commands: dict[str, Command] | None = None) -> str:
    """An error as one line: jsonargparse's wording shortened, after the config file's name."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    if not isinstance(error, ArgumentError):
        return _shortened(text)
    text = re.sub(r"Parser key \"([^\"]+)\":", r"\1:", text)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"does not accept option '\1.\2'", text)
    unknown = re.search(r"does not accept option '([\w.]+)'|unrecognized arguments: --([\w.]+)", text)
    if unknown and commands:
        text = _unknown_key(unknown.group(1) or unknown.group(2), words, commands)
    files = [word.split("=", 1)[-1] for i, word in enumerate(words) if _is_config(words, i)]
    return _shortened(f"{', '.join(files)}: {text}" if files else text)


def _shortened(text: str) -> str:
    """At most `LONGEST_MESSAGE` characters: a message may quote a value of a file, of any length. What is wrong stands last."""
    end = LONGEST_MESSAGE // 3
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - end - 3]}...{text[-end:]}"


def _is_config(words: Sequence[str], index: int) -> bool:
    return words[index].startswith("--config=") or (index > 0 and words[index - 1] == "--config")


def _unknown_key(key: str, words: Sequence[str], commands: dict[str, Command]) -> str:
    known: list[str] = []
    name = next((word for word in words if word in commands), None)
    if name is not None:
        parser = _fill(ArgumentParser(exit_on_error=False), commands[name])
        known = [action.dest for action in _innermost(parser, words)._actions if action.dest != "help"]
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
    section = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    return f"unknown key {key!r}; expected one of: {', '.join(close or section or known)}"


def _innermost(parser: ArgumentParser, words: Sequence[str]) -> ArgumentParser:
    """The parser of the subcommand of a subcommand that `words` name, or the parser itself where there is none."""
    inner = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return next((choices[word] for choices in inner for word in words if word in choices), parser)


def add_config(parser: ArgumentParser, config_class: type[Any]) -> None:
    """Add `--config FILE` and one dotted option per field of a config dataclass to a subcommand."""
    parser.add_argument("--config", action="config", help="YAML file; options after it override its values.")
    parser.add_class_arguments(config_class, fail_untyped=True)


def read_config(parsed: Namespace, config_class: type[Config]) -> Config:
    """Build the config object of the parsed options; the class validates its values when it is constructed.

    Raises:
        MoseError: a value is of the right type but not allowed, or a URL with a password, token or signature in it.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_class, "value", fail_untyped=True)
    names = [action.dest.removeprefix("value.").split(".")[0] for action in parser._actions if action.dest.startswith("value.")]
    files = [str(path) for path in parsed.get("config") or []]
    values: Namespace = Namespace({f"value.{name}": parsed[name] for name in dict.fromkeys(names)})  # type: ignore[no-untyped-call]
    try:
        config = cast(Config, parser.instantiate(values)["value"])
        require_no_credentials(config)
        return config
    except MoseError as error:
        raise MoseError(": ".join([*files, str(error)])) from None
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        # jsonargparse takes a key without a value for None, whatever the type of the field; the class then computes with it.
        empty = [name.removeprefix("value.") for name, value in values.items() if value is None]
        sections = {action.dest.split(".")[1] for action in parser._actions if action.dest.count(".") > 1}
        flat = [name for name in dict.fromkeys(names) if name in sections and not isinstance(parsed[name], Namespace)]
        place = f"{', '.join(empty)}: no value" if empty else first_line(error)
        place = f"{', '.join(flat)}: expected a section with fields" if flat else place
        raise MoseError(": ".join([*files, place])) from None


def require_no_credentials(config: Any, name: str = "") -> None:
    """Check that no text in a config holds a credential: configs are saved, shown and copied into checkpoints and data sets.

    Raises:
        MoseError: a text holds one; the message names the field and hides the credential.
    """
    prefix = f"{name}." if name else ""
    if dataclasses.is_dataclass(config):
        for item in dataclasses.fields(config):
            require_no_credentials(getattr(config, item.name), f"{prefix}{item.name}")
    elif isinstance(config, dict):
        for key, value in config.items():
            require_no_credentials(value, f"{prefix}{key}")
    elif isinstance(config, list | tuple):
        for value in config:
            require_no_credentials(value, name)
    elif isinstance(config, str) and (hidden := without_credentials(config)) != config:
        raise MoseError(
            f"{name}: {hidden!r} holds a credential, which would be saved with the config; expected it in the environment"
        )
