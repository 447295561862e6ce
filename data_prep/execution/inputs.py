"""Binds a folder to a data set: records its config, tokenizer and inputs, and refuses a later run with others."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_prep.execution.lease import read_lease
from data_prep.execution.task_files import list_tasks
from data_prep.pipeline.config import (
    EARLIER_VALUES,
    FREE_FIELDS,
    PackConfig,
    content_fields,
    content_fingerprint,
    lists_fingerprint,
)
from data_prep.pipeline.task_marker import read_record
from mose.config import fingerprint, load_config, save_config, to_plain
from mose.errors import MoseError
from mose.files.atomic_file import TEMPORARY_MARK, atomic_write, write_json
from mose.files.records import from_plain
from mose.files.storage import is_local, storage_path
from mose.tokenizer import (
    HUGGING_FACE_NAME,
    SENTENCEPIECE_NAME,
    TOKENIZER_NAMES,
    SentencePieceTokenizer,
    Tokenizer,
    opened_tokenizer,
)

CONFIG_NAME = "config.yaml"
_LONGEST_DIFFERENCE = 300
_NAMED_ENTRIES = 3


@dataclass(frozen=True)
class Inputs:
    """Fingerprints of everything that decides the bytes of a data set; written to `tasks/inputs.json`."""

    fields: str
    """Of the config's fields."""
    tokenizer: str
    lists: str
    """Of the content of the opt-out and decontamination files."""
    sources: str
    """Of the repositories, or of the parquet files that hold them."""
    config: str
    """Of fields, tokenizer and lists: the fingerprint in a task's marker; "all" in the file."""

    @staticmethod
    def of_plain(values: Any) -> "Inputs":
        """The inputs from the value of their file; raises ValueError where a field is missing or no text."""
        texts = from_plain(dict[str, str], values)
        return from_plain(Inputs, {"config" if name == "all" else name: value for name, value in texts.items()})

    def to_plain(self) -> dict[str, str]:
        """The values of the file."""
        return {"all" if name == "config" else name: value for name, value in vars(self).items()}


# The words for each fingerprint in a message.
_MEANING = {
    "tokenizer": "the tokenizer's content",
    "lists": "the content of the opt-out or decontamination files",
    "sources": "the repositories of the sources",
    "fields": f"{CONFIG_NAME}",
}


def inputs_path(dataset: Path) -> Path:
    """Path of the fingerprints of a data set's inputs."""
    return dataset / "tasks" / "inputs.json"


def inputs_of(config: PackConfig, tokenizer: Tokenizer, sources: str) -> Inputs:
    """The inputs of a data set with this config."""
    fields = fingerprint(content_fields(config))
    return Inputs(fields, tokenizer.fingerprint(), lists_fingerprint(config), sources, content_fingerprint(config, tokenizer))


def read_inputs(dataset: Path) -> Inputs | None:
    """The inputs that a data set is bound to; None if there are none.

    Raises:
        MoseError: the file is not such a record.
    """
    remedy = "remove it, and the next `mose-data pack` writes it"
    return read_record(inputs_path(dataset), Inputs.of_plain, "not a record of inputs", remedy)


def read_config_of(dataset: Path) -> PackConfig:
    """The resolved config that a data set is bound to.

    Raises:
        MoseError: there is none, or it cannot be read.
    """
    path = dataset / CONFIG_NAME
    if not path.is_file():
        raise MoseError(f"{dataset}: holds no {CONFIG_NAME}; expected a folder that `mose-data pack` has begun")
    return _load(path).resolve()


def bind_dataset(config: PackConfig, tokenizer: Tokenizer, inputs: Inputs) -> None:
    """Write config, tokenizer and inputs into the folder, or check that they are those of the tasks already there.

    A folder in which no task runs or has finished may be bound again. Nothing is written before a refusal. The folder is only
    listed if something differs, because thousands of tasks may start at once.

    Raises:
        MoseError: the folder holds something else, or is bound to other inputs; the line says which.
    """
    dataset = storage_path(config.output)
    if is_local(dataset) and dataset.exists() and not dataset.is_dir():
        raise MoseError(f"{dataset}: output: is a file, expected a folder")
    path = dataset / CONFIG_NAME
    there = _load(path) if path.is_file() else None
    if there is None:
        _check_is_free(dataset)
    elif (
        content_fields(there) == content_fields(config)
        and read_inputs(dataset) == inputs
        and _tokenizer_of(dataset) == inputs.tokenizer
    ):
        if there.max_bad_repositories != config.max_bad_repositories:
            # `finish` reads the limit here.
            save_config(config, path)
        return
    elif is_bound(dataset, time.time()):
        _check_same(there, config, path)
        _check_inputs(read_inputs(dataset), inputs, dataset)
    if there != config:
        save_config(config, path)
    _copy_tokenizer(dataset, tokenizer)
    write_json(inputs_path(dataset), inputs.to_plain())


def unbind_dataset(dataset: Path) -> None:
    """Remove what `bind_dataset` wrote."""
    for name in (CONFIG_NAME, *TOKENIZER_NAMES):
        (dataset / name).unlink(missing_ok=True)
    inputs_path(dataset).unlink(missing_ok=True)


def _load(path: Path) -> PackConfig:
    content = path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        copy = path
        if not is_local(path):
            copy = Path(folder) / CONFIG_NAME
            copy.write_bytes(content)
        return load_config(PackConfig, copy, _absent_values(content))


def _absent_values(content: bytes) -> dict[str, Any]:
    """What an earlier version did where its config.yaml has no field for it."""
    try:
        plain = yaml.safe_load(content)
    except yaml.YAMLError:
        return {}
    if not isinstance(plain, dict):
        return {}
    absent = {}
    for name, value in EARLIER_VALUES.items():
        section, _, key = name.rpartition(".")
        fields = plain.get(section) if section else plain
        if key not in (fields or {}):
            absent[name] = value
    return absent


def _check_is_free(dataset: Path) -> None:
    entries = dataset.iterdir() if dataset.exists() else []
    # Other tasks of the same array may be writing their first files.
    if any(not entry.name.endswith(TEMPORARY_MARK) for entry in entries) and not (dataset / CONFIG_NAME).is_file():
        raise MoseError(f"{dataset}: output: holds files but no {CONFIG_NAME}; expected a new folder or a data set to complete")


def is_bound(dataset: Path, now: float) -> bool:
    """Whether a task has finished or is running at this time (seconds since 1970): its inputs may not change any more."""
    states = list_tasks(dataset)
    if states.done:
        return True
    leases = (read_lease(dataset, task) for task in states.held)
    return any(lease is not None and lease.is_alive(now) for lease in leases)


def _check_same(there: PackConfig, asked: PackConfig, path: Path) -> None:
    difference = _first_difference(to_plain(there.resolve()), to_plain(asked.resolve()))
    if difference:
        name, old, new = difference
        said = f"is {old!r} in this data set, {new!r} was asked for"
        if isinstance(old, list) and isinstance(new, list) and len(said) > _LONGEST_DIFFERENCE:
            said = _list_difference(old, new)
        free = f" (only {', '.join(FREE_FIELDS)} may change)" if name.startswith("sources.") else ""
        raise MoseError(f"{path}: {name}: {said}; expected the same, or another output{free}")


def _list_difference(old: list[Any], new: list[Any]) -> str:
    """What two long lists do not share, the first entries of each."""
    parts = []
    for what, entries in (("without", [item for item in old if item not in new]), ("with", [i for i in new if i not in old])):
        if entries:
            more = f" and {len(entries) - _NAMED_ENTRIES} more" if len(entries) > _NAMED_ENTRIES else ""
            parts.append(f"{what} {', '.join(map(str, entries[:_NAMED_ENTRIES]))}{more}")
    return f"is a list of {len(old)} in this data set, one {' and '.join(parts) or 'in another order'} was asked for"


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    for key, value in new.items():
        name = f"{prefix}{key}"
        if name in FREE_FIELDS:
            continue
        if isinstance(value, dict):
            inside = _first_difference(old[key], value, f"{name}.")
            if inside:
                return inside
        elif old[key] != value:
            return name, old[key], value
    return None


def _check_inputs(there: Inputs | None, asked: Inputs, dataset: Path) -> None:
    """Refuse the same paths with other content, which the fields of the config do not show."""
    for name, meaning in _MEANING.items():
        old, new = getattr(there, name, None), getattr(asked, name)
        if there and old != new:
            raise MoseError(
                f"{inputs_path(dataset)}: {name}: is {old} in this data set, now {new}: {meaning} changed since it was begun; "
                "expected the same, or another output"
            )


def _tokenizer_of(dataset: Path) -> str | None:
    if not any((dataset / name).is_file() for name in TOKENIZER_NAMES):
        return None
    with opened_tokenizer(dataset) as tokenizer:
        return tokenizer.fingerprint()


def _copy_tokenizer(dataset: Path, tokenizer: Tokenizer) -> None:
    if _tokenizer_of(dataset) == tokenizer.fingerprint():
        return
    name = SENTENCEPIECE_NAME if isinstance(tokenizer, SentencePieceTokenizer) else HUGGING_FACE_NAME
    with atomic_write(dataset / name) as file:
        file.write(tokenizer.path.read_bytes())
    for other in set(TOKENIZER_NAMES) - {name}:
        (dataset / other).unlink(missing_ok=True)
