"""Valid files of each format that this project reads, mutations of them, and the reader that must refuse them in one line."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import save_file

from data_prep.pipeline.task_marker import TaskMarker, marker_path, read_marker, write_marker
from data_prep.shards.lineage import LINEAGE_SCHEMA, LineageTable
from data_prep.shards.rows import read_blocks, read_index, read_row
from mose.checkpoint.converted_checkpoint import read_model_config
from mose.checkpoint.safetensors_file import WeightFiles
from mose.config import load_config
from mose.dataset.manifest import read_manifest
from mose.dataset.pairs import Pair, read_pairs, write_pairs
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.tokenizer import load_tokenizer
from pretrain.checkpoints.files import manifest_fingerprint, read_checkpoint_manifest
from pretrain.config.run import PretrainConfig
from pretrain.storage.local_rows import LocalRows
from tests.datasets import make_dataset, make_tokenizer
from tests.mose.byte_tokenizer import make_byte_tokenizer

# What stands in place of a number, a word or a string of a text: wrong types, and values at which code breaks.
ODD = (b"-1", b"0", b"2.0", b"1e999", b"-Infinity", b"NaN", b"true", b"null", b'""', b'"x"', b"[]", b"{}")
ODD += (b"18446744073709551616", b"1e308", b"9007199254740993", b"9" * 5000, b"[" * 5000, b'{"a":' * 3000)
ODD += (b'"\\ud800"', b'"../../x"', b"\xc3", b"\xff\xfe", b"\0")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null|[A-Za-z_]+')


@dataclass(frozen=True)
class Case:
    """A format: the file to mutate, inside a folder that is otherwise valid, and what reads it."""

    name: str
    path: Path
    read: Callable[[], object]


def _lineage(path: Path) -> None:
    """A lineage table of a few lines in two row groups."""
    columns = {}
    for field in LINEAGE_SCHEMA:
        is_number = pa.types.is_integer(field.type)
        columns[field.name] = pa.array([0, 1, 2, 3]) if is_number else pa.array(["a", "b", "a", "c"])
    table = pa.table(columns).cast(LINEAGE_SCHEMA)
    pq.write_table(table, path, row_group_size=2, compression="zstd")


def _read_lineage(path: Path) -> None:
    with LineageTable(path) as table:
        table.columns(LINEAGE_SCHEMA.names)


def _read_dataset(folder: Path) -> None:
    rows = LocalRows(folder, "train")
    try:
        first_R = np.arange(min(len(rows), 20))
        rows.labels(first_R)
        rows.tokens(first_R)
    finally:
        rows.close()


def _read_shard(folder: Path) -> None:
    manifest = read_manifest(folder)
    entry = manifest.shards("train")[0]
    for place in range(3):
        read_row(folder, manifest, entry, place)
    for _ in read_blocks(folder / entry.path, manifest.layout(), entry.rows):
        pass
    _read_dataset(folder)


def _read_weights(folder: Path) -> None:
    with WeightFiles(folder) as weights:
        for name in weights.entries:
            weights.read_finite(name)


def _checkpoint(folder: Path) -> Path:
    progress = {"step": 2, "consumed_rows": 16, "consumed_tokens": 200}
    trend = {"count": 2, "mean": 1.5, "variance": 0.25}
    health = {"loss": trend, "norm": trend, "skipped_steps": 0, "skipped_in_a_row": 0, "norm_outliers": 0}
    manifest = {"progress": progress | {"health": health}, "identity": {"seed": 1}, "files": {"a": "b"}, "sizes": {"a": 1}}
    (folder / "step-000002").mkdir(parents=True)
    path = folder / "step-000002" / "manifest.json"
    path.write_text(json.dumps(manifest | {"fingerprint": manifest_fingerprint(manifest)}))
    return path


def _read_checkpoint(path: Path) -> None:
    """Read it as it is, and with a fingerprint that fits: whoever edits a manifest can compute that, too."""
    try:
        values = json.loads(path.read_bytes())
        path.write_text(json.dumps(values | {"fingerprint": manifest_fingerprint(values)}))
    except (ValueError, TypeError, RecursionError, AttributeError):
        pass
    read_checkpoint_manifest(path.parent)


def cases(folder: Path) -> list[Case]:
    """Every case, each below a folder of its own."""
    made: list[Case] = []

    def add(name: str, path: Path, read: Callable[[], object]) -> None:
        made.append(Case(name, path, read))

    dataset = make_dataset(folder / "manifest")
    add("manifest", dataset / "manifest.json", lambda: _read_dataset(dataset))
    stored = make_dataset(folder / "shard")
    entry = read_manifest(stored).shards("train")[0]
    add("tar", stored / entry.path, lambda: _read_shard(stored))
    indexed = make_dataset(folder / "index")
    index = indexed / entry.index_path
    add("npy", index, lambda: (read_index(index, entry.rows), _read_dataset(indexed)))
    (folder / "marker" / "tasks").mkdir(parents=True)
    write_marker(folder / "marker", TaskMarker(0, "a", "b", {"train": entry}, {"train": {"rows": 3}}, {"kept": 2}, 3, 0, ["x"]))
    add("task marker", marker_path(folder / "marker", 0), lambda: read_marker(marker_path(folder / "marker", 0)))
    manifest = _checkpoint(folder / "checkpoints")
    add("checkpoint manifest", manifest, lambda: _read_checkpoint(manifest))
    (folder / "model").mkdir()
    ModularStarEncoderConfig(num_hidden_layers=4, matryoshka_layers=[2, 4]).save_pretrained(folder / "model")
    add("config.json", folder / "model" / "config.json", lambda: read_model_config(folder / "model"))
    (folder / "weights").mkdir()
    weights = folder / "weights" / "model.safetensors"
    save_file({"a": torch.ones(4, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}, weights)
    add("safetensors", weights, lambda: _read_weights(folder / "weights"))
    (folder / "parts").mkdir()
    save_file({"a": torch.ones(4, 3)}, folder / "parts" / "one.safetensors")
    weight_map = folder / "parts" / "model.safetensors.index.json"
    weight_map.write_text('{"metadata": {"total_size": 48}, "weight_map": {"a": "one.safetensors"}}')
    add("weight map", weight_map, lambda: _read_weights(folder / "parts"))
    (folder / "bytes").mkdir()
    make_byte_tokenizer(folder / "bytes")
    add("tokenizer.json", folder / "bytes" / "tokenizer.json", lambda: load_tokenizer(folder / "bytes").fingerprint())
    make_tokenizer(folder / "pieces")
    add("sentencepiece", folder / "pieces" / "tokenizer.model", lambda: load_tokenizer(folder / "pieces"))
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump({"seed": 3, "max_steps": 20, "model": {"width": 32}, "schedule": {"warmup_steps": 4}}))
    add("yaml", config, lambda: load_config(PretrainConfig, config))
    pairs = folder / "pairs.parquet"
    write_pairs(pairs, [Pair(f"text {i}", f"code {i}", "python", f"code {i}", "java", "r", f"{i}.py") for i in range(20)])
    add("parquet", pairs, lambda: read_pairs(pairs))
    lineage = folder / "lineage.parquet"
    _lineage(lineage)
    add("lineage", lineage, lambda: _read_lineage(lineage))
    return made


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid` after one to four mutations: bytes changed, removed, repeated, cut off, or words replaced by odd values."""
    content = valid
    for _ in range(draw(st.integers(1, 4))):
        if not content:
            break
        kind = draw(st.sampled_from(("byte", "remove", "repeat", "truncate", "insert", "word", "word")))
        start = draw(st.integers(0, len(content) - 1))
        end = min(len(content), start + draw(st.integers(1, 40)))
        odd = draw(st.sampled_from(ODD))
        if kind == "byte":
            content = content[:start] + bytes([draw(st.integers(0, 255))]) + content[start + 1 :]
        elif kind == "word":
            content = _with_word_replaced(content, start, odd)
        else:
            middle = {"remove": b"", "repeat": content[start:end] * 3, "insert": odd + content[start:end]}
            content = content[:start] if kind == "truncate" else content[:start] + middle[kind] + content[end:]
    return content


def _with_word_replaced(content: bytes, start: int, odd: bytes) -> bytes:
    # Only near `start`: the text of a tokenizer has 100,000 words.
    window = content[start : start + 400]
    word = _TOKEN.search(window)
    if word is None:
        return content[:start] + odd + content[start + 1 :]
    return content[: start + word.start()] + odd + content[start + word.end() :]
