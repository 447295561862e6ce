"""Embeddings of many texts at every exit in one pass over them.

Letters: R rows (texts), D width, E exits.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.batches import INDICES
from finetune.device import precision
from finetune.retrieval import forward
from mose.dataset.packed_sequence import TOKENS
from mose.files.streams import make_console, progress_bar
from mose.model.modeling_mose import ModularStarEncoderForRetrieval

_LINE_EVERY_SECONDS = 30.0
Item = TypeVar("Item")


def embed_rows(
    model: ModularStarEncoderForRetrieval,
    rows: Sequence[TOKENS],
    chunk_tokens: int,
    device: torch.device,
    bf16: bool,
    progress: bool = True,
) -> list[NDArray[np.float32]]:
    """E tables [R, D] of normalised embeddings of token rows: one forward pass, rows of similar length together."""
    model.to(device).eval()

    def follow(chunks: Sequence[INDICES]) -> Iterable[INDICES]:
        return with_progress(chunks, len(chunks), "embedding") if progress else chunks

    with precision(device, bf16):
        return forward.embed_rows(model, rows, model.config.computed_exit_layers, chunk_tokens, device, follow)


def with_progress(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield the items while showing a bar on a terminal, or else one line every 30 seconds."""
    if sys.stderr.isatty():
        with progress_bar(console=make_console(stderr=True), transient=True) as bar:
            yield from bar.track(items, description=label, total=total)
        return
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > _LINE_EVERY_SECONDS:
            print(f"{label}: {done} of {total} chunks", file=sys.stderr, flush=True)
            last = time.monotonic()
        yield item
