"""Gradient caching: the contrastive loss of a large batch in the memory of one chunk, with the exact gradient.

After Gao et al. 2021 (GradCache). Letters: R rows (texts of this rank), B rows of one chunk, D width, E exits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from finetune.batches import PackedBatch
from finetune.device import seeded

Loss = TypeVar("Loss")
Embed = Callable[[PackedBatch], Sequence[Tensor]]


@dataclass(frozen=True)
class Chunk:
    """Some rows of the batch: their places among the R rows [B], the model's input, and the seed of their dropout."""

    places_B: Tensor
    batch: PackedBatch
    seed: int


def embed_chunk(embed: Embed, chunk: Chunk) -> list[Tensor]:
    """E embeddings [B, D] of one chunk in float32, its dropout drawn from its own seed."""
    with seeded(chunk.seed, chunk.batch.input_ids_N.device):
        return [embeddings_BD.float() for embeddings_BD in embed(chunk.batch)]


def gather_chunks(parts: Sequence[Sequence[Tensor]], chunks: Sequence[Chunk]) -> list[Tensor]:
    """E tensors [R, D] in the order of the rows, from E tensors [B, D] of each chunk."""
    rows_R = torch.argsort(torch.cat([chunk.places_B for chunk in chunks]))
    return [torch.cat(tables)[rows_R] for tables in zip(*parts, strict=True)]


def backward(embed: Embed, chunks: Sequence[Chunk], loss: Callable[[list[Tensor]], tuple[Tensor, Loss]]) -> Loss:
    """Add the gradient of `loss` to the model's parameters, chunk by chunk; returns what `loss` reports beside its value.

    Pass 1 embeds every chunk without a graph, the loss gives the gradient of each embedding, and pass 2 embeds each chunk
    again, with the same dropout masks, and sends that gradient through it. The last chunk keeps its graph from pass 1: pass 2
    holds the activations of one chunk in any case. A single chunk therefore needs one pass.
    """
    *others, last = chunks
    with torch.no_grad():
        parts = [embed_chunk(embed, chunk) for chunk in others]
    outputs = embed_chunk(embed, last)
    detached = [output_BD.detach() for output_BD in outputs]
    leaves = [embeddings_RD.requires_grad_() for embeddings_RD in gather_chunks([*parts, detached], chunks)]
    value, report = loss(leaves)
    torch.autograd.backward(value)
    _send_back(outputs, leaves, last)
    for chunk in others:
        _send_back(embed_chunk(embed, chunk), leaves, chunk)
    return report


def _send_back(outputs: list[Tensor], leaves: Sequence[Tensor], chunk: Chunk) -> None:
    torch.autograd.backward(outputs, [_gradient(leaf)[chunk.places_B] for leaf in leaves])


def _gradient(leaf_RD: Tensor) -> Tensor:
    return leaf_RD.grad if leaf_RD.grad is not None else torch.zeros_like(leaf_RD)
