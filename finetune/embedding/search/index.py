"""Functions and their vectors at several exits, and the functions nearest to a question.

Letters: K functions, D width.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.device import pick_device
from finetune.embedding.config import SearchConfig
from finetune.embedding.encoder import Encoder, Vectors
from finetune.embedding.fingerprint import model_fingerprint
from finetune.embedding.search.functions import Function, no_functions, source_files
from finetune.embedding.search.store import Code, Identity, Store
from finetune.retrieval.prompts import code_prompt
from mose.checkpoint.converted_checkpoint import read_model_config
from mose.files.streams import make_console, progress_bar

Tables = dict[int, Vectors]
# Codes that are embedded between two commits: what a kill loses.
_CODES_AT_ONCE = 512
_LINE_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class Hit:
    """A function found: its place among the functions, and the cosine of question and code."""

    function: int
    score: float


@dataclass
class Index:
    """Functions and their embeddings [K, D] by exit; those of equal code share a row."""

    functions: Sequence[Function]
    tables: Tables
    rows_K: NDArray[np.int64] | None = None
    """Row of each function in the tables; None: its own place."""
    reranker: "Reranker | None" = None

    @classmethod
    def build(cls, encoder: Encoder, functions: Sequence[Function]) -> "Index":
        """Embed the functions."""
        return cls(functions, encoder.encode_prompts([code_prompt(function.code, function.language) for function in functions]))

    def order(self, layer: int, question_D: Vectors) -> tuple[NDArray[np.int64], Vectors]:
        """All functions, nearest first (equal ones in their own order), and the cosine of each [K] in the functions' order."""
        cosines_K: Vectors = self.tables[layer] @ question_D
        cosines_K = cosines_K if self.rows_K is None else cosines_K[self.rows_K]
        order_K: NDArray[np.int64] = np.argsort(-cosines_K, kind="stable")
        return order_K, cosines_K

    def nearest(self, layer: int, question_D: Vectors, top: int) -> list[Hit]:
        """The `top` functions nearest to a question at one exit."""
        order_K, cosines_K = self.order(layer, question_D)
        return [Hit(place, float(cosines_K[place])) for place in order_K[:top].tolist()]

    def cascade(self, questions: Tables, number: int, candidates: int, top: int) -> list[Hit]:
        """The `top` functions by the deepest exit, among the `candidates` that the shallowest finds."""
        first, last = min(questions), max(questions)
        recalled = [hit.function for hit in self.nearest(first, questions[first][number], candidates)]
        assert self.reranker is not None and self.rows_K is not None
        vectors_CD = self.reranker.vectors(self.rows_K[recalled], last)
        cosines_C = vectors_CD @ questions[last][number]
        order_C = np.argsort(-cosines_C, kind="stable")[:top].tolist()
        return [Hit(recalled[place], float(cosines_C[place])) for place in order_C]


@dataclass
class Reranker:
    """Vectors of a cascade's deep exit: embedded when a code is first a candidate, and kept in the index."""

    encoder: Encoder
    store: Store
    codes_K: NDArray[np.int64]
    known: dict[int, Vectors] = field(default_factory=dict)

    def vectors(self, rows: NDArray[np.int64], layer: int) -> Vectors:
        """Vectors [C, D] at the deep exit of the codes in these rows."""
        if not self.known:
            self.known = dict(zip(*(part for part in self._stored(layer)), strict=True))
        codes = self.codes_K[rows].tolist()
        missing = self.store.missing_of([code for code in dict.fromkeys(codes) if code not in self.known], layer)
        if missing:
            table_KD = self.encoder.encode_prompts([code_prompt(code.text, code.language) for code in missing])[layer]
            self.store.put(missing, {layer: table_KD})
            self.known |= {code.code: vector for code, vector in zip(missing, table_KD, strict=True)}
        return np.stack([self.known[code] for code in codes])

    def _stored(self, layer: int) -> tuple[list[int], Vectors]:
        codes_K, table_KD = self.store.vectors(layer)
        return codes_K.tolist(), table_KD


def open_store(config: SearchConfig, folder: Path, encoder: Encoder) -> Store:
    """The index file of a folder, made where there is none."""
    exits = encoder.exits
    eager, later = (exits[:1], exits[1:]) if config.cascade else (exits, ())
    dtype = str(next(encoder.model.parameters()).dtype).removeprefix("torch.")
    model = model_fingerprint(Path(config.checkpoint))
    identity = Identity(model, eager, later, encoder.width, encoder.max_length, dtype, str(folder.resolve()))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mose" / "search"
    return Store(Path(config.index) if config.index else cache / identity.file_name(), identity)


def bring_up_to_date(store: Store, folder: Path, encoder: Encoder) -> Index:
    """Read what changed in the folder, embed what is new, and load the index.

    Raises:
        MoseError: the folder holds no function; the index is damaged.
    """
    files = store.update(source_files(folder))
    missing = store.missing()
    # Of the eager exits only: the deep exit of a cascade waits for its candidates.
    shallow = encoder.at(store.identity.exits)
    for part in _windows(missing):
        store.put(part, shallow.encode_prompts([code_prompt(code.text, code.language) for code in part]))
    functions, codes_K = store.functions()
    if not functions:
        raise no_functions(folder, files)
    loaded = {layer: store.vectors(layer) for layer in store.identity.exits}
    stored_K = loaded[store.identity.exits[0]][0]
    reranker = Reranker(encoder, store, stored_K) if store.identity.later_exits else None
    return Index(functions, {layer: table for layer, (_, table) in loaded.items()}, np.searchsorted(stored_K, codes_K), reranker)


def _windows(codes: Sequence[Code]) -> Iterator[Sequence[Code]]:
    """The codes in windows, with a bar on a terminal, or else one line per 30 seconds."""
    windows = [codes[start : start + _CODES_AT_ONCE] for start in range(0, len(codes), _CODES_AT_ONCE)]
    if sys.stderr.isatty() and windows:
        with progress_bar(console=make_console(stderr=True), transient=True) as bar:
            yield from bar.track(windows, description="indexing")
        return
    last = time.monotonic()
    for number, window in enumerate(windows):
        if time.monotonic() - last > _LINE_EVERY_SECONDS:
            print(f"indexing: {number * _CODES_AT_ONCE:,} of {len(codes):,} functions", file=sys.stderr, flush=True)
            last = time.monotonic()
        yield window


def open_encoder(config: SearchConfig) -> Encoder:
    """The model at the config's exits, or at its shallowest and its deepest.

    Raises:
        MoseError: the folder is not a converted retrieval checkpoint, or has no such exit.
    """
    known = read_model_config(Path(config.checkpoint)).computed_exit_layers
    half = config.bf16 and pick_device(config.device).type == "cuda"
    return Encoder.from_pretrained(
        config.checkpoint,
        config.exits or (known[0], known[-1]),
        device=config.device,
        dtype="bfloat16" if half else "float32",
        max_length=config.max_length,
        batch_tokens=config.chunk_tokens,
        threads=config.threads,
    )
