"""Configs: frozen dataclasses, filled from YAML and dotted overrides, strict about names and types, saved as YAML."""

import dataclasses
import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from mose.command import check_configs, one_line, read_config, require_no_credentials
from mose.errors import MoseError
from mose.files.atomic_file import write_text

Config = TypeVar("Config")


def document_fields() -> None:
    """Make `--help` show the string under each field of a config class; each command calls it before it builds a parser."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)


def load_config(config_class: type[Config], path: Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Build a config from a YAML file and dotted overrides, e.g. `{"model.num_layers": 4}`.

    Raises:
        MoseError: the file cannot be read, a key is unknown, a value has the wrong type or is not allowed.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(config_class, fail_untyped=True)
    words = ["--config", str(path)] if path is not None else []
    words += [
        f"--{name}={json.dumps(value) if not isinstance(value, str) else value}" for name, value in (overrides or {}).items()
    ]
    check_configs(words)
    try:
        return read_config(parser.parse_args(words), config_class)
    except ArgumentError as error:
        raise MoseError(one_line(error, words)) from error


def to_plain(config: Any) -> dict[str, Any]:
    """A config as nested dictionaries, lists, numbers and strings, as YAML and JSON can hold them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[no-any-return]


def save_config(config: Any, path: Path) -> None:
    """Write a config as YAML, atomically; `load_config` reads it back.

    Raises:
        MoseError: a URL in it holds a credential.
    """
    require_no_credentials(config)
    write_text(path, yaml.safe_dump(to_plain(config), sort_keys=False))


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that change when any value in a config or plain structure changes."""
    plain = to_plain(value) if dataclasses.is_dataclass(value) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def with_new_fields_at_default(config: Config, first_fields: Collection[str], prefix: str = "") -> Config:
    """The same config, with every field whose dotted name is not one of `first_fields` at its default.

    For fields that were added after a data set or checkpoint was made: it was made as their defaults say. If the copy equals the
    config, no newer field was set.
    """
    changed: dict[str, Any] = {}
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        name, value = f"{prefix}{item.name}", getattr(config, item.name)
        if name in first_fields:
            continue
        if dataclasses.is_dataclass(value) and any(first.startswith(f"{name}.") for first in first_fields):
            changed[item.name] = with_new_fields_at_default(value, first_fields, f"{name}.")
        elif item.default is not dataclasses.MISSING:
            changed[item.name] = item.default
        elif item.default_factory is not dataclasses.MISSING:
            changed[item.name] = item.default_factory()
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


def require(condition: bool, message: str) -> None:
    """Check one rule of a config class.

    Raises:
        MoseError: `condition` is false; `message` names the field and what was expected.
    """
    if not condition:
        raise MoseError(message)
