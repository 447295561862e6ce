"""Builds dataclasses from parsed JSON: every field is checked against its annotation, so that no later code meets a wrong type.

The one way in which records of files (manifests, markers, leases) are read. Whole numbers have at most 64 bits.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Union

Record = TypeVar("Record")
Reader = Callable[[Any, str], Any]
_LARGEST = (1 << 63) - 1
_SHOWN = 60


def from_plain(kind: type[Record], values: Any, place: str = "") -> Record:
    """A `kind`, which is a dataclass or another annotation, from a parsed JSON value.

    Nested dataclasses, tuples, lists, dictionaries and options are followed.

    Fields with a default may be missing. `place` stands before the field's name in messages.

    Raises:
        ValueError: a field is missing, unknown or of another type; the message is `FIELD: FOUND, expected KIND`.
    """
    return _reader(kind)(values, place)  # type: ignore[no-any-return, arg-type]


@functools.cache
def _reader(kind: Any) -> Reader:
    """The reader of one annotation; made once, because a manifest has thousands of entries of one class."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return lambda value, place: value
    if dataclasses.is_dataclass(kind):
        return _dataclass_reader(kind)
    if origin in (Union, types.UnionType) and type(None) in arguments and len(arguments) == 2:
        (inner,) = (_reader(argument) for argument in arguments if argument is not type(None))
        return lambda value, place: None if value is None else inner(value, place)
    if origin in (tuple, list):
        item = _reader(arguments[0])
        return lambda value, place: origin(
            item(each, f"{place}[{number}]") for number, each in enumerate(_expect(list, "a list", value, place))
        )
    if origin is dict:
        entry = _reader(arguments[1])
        return lambda value, place: {
            name: entry(each, f"{place}.{name}" if place else name)
            for name, each in _expect(dict, "an object", value, place).items()
        }
    if kind in _PLAIN:
        return _PLAIN[kind]
    raise TypeError(f"{kind}: no reader for this annotation")


def _dataclass_reader(kind: Any) -> Reader:
    annotations = typing.get_type_hints(kind)
    fields = {field.name: _reader(annotations[field.name]) for field in dataclasses.fields(kind) if field.init}
    needed = [
        field.name
        for field in dataclasses.fields(kind)
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]

    def read(values: Any, place: str) -> Any:
        prefix = f"{place}." if place else ""
        _expect(dict, "an object", values, place)
        for name in needed:
            if name not in values:
                raise ValueError(f"{prefix}{name}: missing")
        if unknown := values.keys() - fields.keys():
            raise ValueError(f"{prefix}{_shown(min(unknown))}: unknown field, expected one of {', '.join(fields)}")
        return kind(**{name: fields[name](value, prefix + name) for name, value in values.items()})

    return read


def _expect(kind: type, name: str, value: Any, place: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{place or 'the whole'}: {_shown(value)}, expected {name}")
    return value


def _whole(value: Any, place: str) -> int:
    # A bool is an int in Python, and a count of `true` rows is a mistake.
    if type(value) is not int or not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"{place}: {_shown(value)}, expected a whole number of at most 64 bits")
    return value


def _number(value: Any, place: str) -> float:
    if type(value) not in (int, float) or abs(value) > 1e308:
        raise ValueError(f"{place}: {_shown(value)}, expected a number")
    return float(value) if type(value) is int else value  # type: ignore[no-any-return]


_PLAIN: Mapping[Any, Reader] = {
    int: _whole,
    float: _number,
    str: lambda value, place: _expect(str, "text", value, place),
    bool: lambda value, place: _expect(bool, "true or false", value, place),
}


def _shown(value: Any) -> str:
    """The start of a value: a message stays one short line whatever the file holds."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 1000 else "a number of hundreds of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
