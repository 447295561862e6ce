"""`mose-finetune embed`: the texts of files to vectors, part by part; the same command continues a run that was killed."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.embedding.config import EmbedConfig
from finetune.embedding.encoder import chosen_exits, make_prompts
from finetune.embedding.fingerprint import model_fingerprint
from finetune.embedding.inputs import Columns, Contents, parts, read_items, scan
from finetune.embedding.processes import EncoderOptions, EncoderPool, Tables
from finetune.embedding.vector_files import Parts, output_files, write_npy, write_parquet
from finetune.retrieval.prompts import Prompt
from mose.checkpoint.converted_checkpoint import read_model_config
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.files.json_file import parse_json
from mose.files.lock import WRITER_LOCK, lock_file
from mose.files.streams import make_console, progress_bar

_LINE_EVERY_SECONDS = 30.0
_IDENTITY_NAME = "identity.json"
# What decides the vectors; threads, processes and batch sizes change the last bits of a float at most.
_DECIDING = ("kind", "language", "instruction", "text_column", "id_column", "language_column", "max_length", "dtype", "part_rows")


def embed(config: EmbedConfig) -> None:
    """Embed the input and write the output; finished parts of an earlier run of the same command are kept.

    Raises:
        MoseError: the checkpoint or the input cannot be used, or the output is of another model, input or option.
    """
    output, source = Path(config.output), Path(config.input)
    columns = Columns(config.text_column, config.id_column, config.language_column)
    exits = chosen_exits(Path(config.checkpoint), config.exits or None)
    contents = scan(source, columns)
    identity = _identity(config, exits, contents)
    folder = output.with_name(f"{output.name}.parts")
    described = output.with_name(f"{output.name}.json")
    if _is_finished(output, described, folder, exits, identity):
        # A run that was killed after its last file was written has left its parts.
        shutil.rmtree(folder, ignore_errors=True)
        print(f"{output}: already has all {contents.rows:,} rows")
        return
    with lock_file(folder / WRITER_LOCK, str(output), "one process per output"):
        _check_identity(folder / _IDENTITY_NAME, identity, output)
        write_json(folder / _IDENTITY_NAME, identity)
        width = int(read_model_config(Path(config.checkpoint)).hidden_size)
        kept = Parts(folder, exits, contents.rows, config.part_rows, width)
        _embed_parts(config, exits, kept, columns)
        ids = (item.id for item in read_items(source, columns))
        (write_npy if output.suffix == ".npy" else write_parquet)(output, kept, ids)
        write_json(described, {**identity, "rows": contents.rows, "width": width})
    shutil.rmtree(folder)
    print(f"{output}: {contents.rows:,} rows, exits {', '.join(map(str, exits))}")


def _identity(config: EmbedConfig, exits: tuple[int, ...], contents: Contents) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    options = {name: values[name] for name in _DECIDING}
    return {"model": model_fingerprint(Path(config.checkpoint)), "exits": list(exits), "input": contents.digest, **options}


def _is_finished(output: Path, described: Path, folder: Path, exits: tuple[int, ...], identity: dict[str, Any]) -> bool:
    """Whether the output is there and of this identity.

    Raises:
        MoseError: it is of another one, or nobody knows of what.
    """
    there = [path for path in output_files(output, exits) if path.exists()]
    if described.exists():
        _check_identity(described, identity, output)
        return len(there) == len(output_files(output, exits))
    if there and not folder.exists():
        raise MoseError(f"{there[0]}: exists, and {described.name} does not say what it holds; name another output or remove it")
    return False


def _check_identity(path: Path, identity: dict[str, Any], output: Path) -> None:
    if not path.exists():
        return
    try:
        found = parse_json(path.read_bytes())
    except ValueError as error:
        raise MoseError(f"{path}: not JSON: {error}; remove it to begin anew") from None
    for name, value in identity.items():
        there = found.get(name) if isinstance(found, dict) else None
        if there != value:
            raise MoseError(
                f"{output}: begun with another {name} ({str(there)[:60]}), expected {str(value)[:60]}; name another output, or "
                f"remove {path.parent if path.name == _IDENTITY_NAME else path}"
            )


def _embed_parts(config: EmbedConfig, exits: tuple[int, ...], kept: Parts, columns: Columns) -> None:
    """Embed and keep every part that is missing."""
    missing = [number for number in range(len(kept.lengths)) if not kept.has(number)]
    options = EncoderOptions(
        config.checkpoint, exits, config.device, config.dtype, config.max_length, config.batch_tokens, config.threads
    )
    progress = _Progress(sum(kept.lengths), sum(kept.lengths) - sum(kept.lengths[number] for number in missing))
    with progress:
        for number, tables in _finished(options, config.workers, _prompts(config, set(missing), columns)):
            kept.write(number, tables)
            progress.advance(kept.lengths[number])


def _prompts(config: EmbedConfig, missing: set[int], columns: Columns) -> Iterator[tuple[int, list[Prompt]]]:
    for number, part in enumerate(parts(read_items(Path(config.input), columns), config.part_rows)):
        if number in missing:
            languages = [item.language or config.language for item in part]
            yield number, make_prompts([item.text for item in part], config.kind, languages, config.instruction)


def _finished(options: EncoderOptions, workers: int, prompts: Iterator[tuple[int, list[Prompt]]]) -> Iterator[tuple[int, Tables]]:
    if workers == 1:
        encoder = options.open()
        yield from ((number, encoder.encode_prompts(part)) for number, part in prompts)
        return
    with EncoderPool(options, workers) as pool:
        yield from pool.encode_parts(prompts)


class _Progress:
    """A bar on a terminal, or else one line per 30 seconds."""

    def __init__(self, rows: int, done: int):
        self._rows, self._done, self._last = rows, done, time.monotonic()
        self._bar = progress_bar(console=make_console(stderr=True), transient=True) if sys.stderr.isatty() else None
        self._task = self._bar.add_task("embedding", total=rows, completed=done) if self._bar else None

    def __enter__(self) -> None:
        if self._bar:
            self._bar.start()

    def __exit__(self, *error: Any) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, rows: int) -> None:
        self._done += rows
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() - self._last > _LINE_EVERY_SECONDS:
            print(f"embedding: {self._done:,} of {self._rows:,} rows", file=sys.stderr, flush=True)
            self._last = time.monotonic()
