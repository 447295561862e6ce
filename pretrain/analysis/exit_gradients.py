"""The gradient of each exit's loss on the shared trunk: its norm per block, and the cosines between exits.

The gradients of all exits on the whole trunk never exist at once: from the last block to the first, a block's forward pass is
repeated and each exit's gradient sent through it alone, so that one block's gradients are in memory.

Letters: E exits, L layers, P blocks of the trunk (embedding, layers, final norm), N real tokens,
D width, C columns of sums.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.data.micro_batch import MicroBatch
from pretrain.model.terms.term import Denominators
from pretrain.model.training_model import TrainingModel

FLOATS = NDArray[np.float64]
EMBEDDING, NORM = "embedding", "norm"


@dataclass(frozen=True)
class ExitGradients:
    """Products of the exits' gradients, each exit's loss weighted as in training; exits shallow to deep."""

    exit_layers: tuple[int, ...]
    blocks: tuple[str, ...]
    """Names of the blocks, from the embedding to the norm; a layer's is its number, counted from 1."""
    products_PEE: FLOATS
    """Of each block: the inner product of exit e's gradient with exit f's."""
    sums_EC: FLOATS
    """Sums over the rows in the order of `pretrain.model.terms.registry.COLUMNS`."""

    @property
    def norms_EP(self) -> FLOATS:
        """Norm of each exit's gradient on each block; 0 for blocks above the exit."""
        norms: FLOATS = np.sqrt(np.einsum("pee->ep", self.products_PEE))
        return norms

    @property
    def trunk_norms_E(self) -> FLOATS:
        """Norm of each exit's gradient on the whole trunk."""
        norms: FLOATS = np.sqrt(np.einsum("pee->e", self.products_PEE))
        return norms

    @property
    def cosines_EE(self) -> FLOATS:
        """Cosine of each pair of exits on the blocks that both use, which are those below the shallower one."""
        reached_PE = np.einsum("pee->pe", self.products_PEE) > 0
        shared_PEE = reached_PE[:, :, None] & reached_PE[:, None, :]
        squares_PE = np.einsum("pee->pe", self.products_PEE)
        lengths_EE = np.sqrt((squares_PE[:, :, None] * shared_PEE).sum(0) * (squares_PE[:, None, :] * shared_PEE).sum(0))
        return _divided((self.products_PEE * shared_PEE).sum(0), lengths_EE)

    @property
    def cosines_PEE(self) -> FLOATS:
        """Cosine of each pair of exits on each block; NaN for blocks above one of them."""
        norms_PE = self.norms_EP.T
        return _divided(self.products_PEE, norms_PE[:, :, None] * norms_PE[:, None, :])


def _divided(values: FLOATS, by: FLOATS) -> FLOATS:
    return np.divide(values, by, out=np.full_like(values, np.nan), where=by > 0)


class _GivenStates(nn.Module):
    """Stands in for the trunk, so that the model's own loss is computed from states that are leaves of the graph."""

    def __init__(self, states: list[Tensor]):
        super().__init__()
        self._states = states

    def forward(self, *_: Any) -> list[Tensor]:
        return self._states


@dataclass(frozen=True)
class _Block:
    """A part of the trunk that can be recomputed alone."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    """The arguments of its call in the trunk; the first is the state [N, D] (for the embedding: the token ids)."""


def exit_gradients(model: TrainingModel, batch: MicroBatch, exit_layers: Sequence[int]) -> ExitGradients:
    """Gradients of each exit's share of the loss on `batch` (one device's, all of it at once), dropout off.

    `model` is whole (no tensor parallelism) and on the batch's device.
    """
    was_training = model.training
    model.eval()
    blocks, states = _recorded_trunk(model, batch)
    gradients, sums_EC = _gradients_of_states(model, batch, states)
    products = []
    tops = _top_blocks(blocks, exit_layers)
    flowing: dict[int, Tensor] = {}
    for place, block in reversed(list(enumerate(blocks))):
        flowing |= {index: gradients[index] for index, top in enumerate(tops) if top == place}
        products_EE, flowing = _through(block, flowing, len(exit_layers))
        products.append(products_EE)
    model.train(was_training)
    names = tuple(block.name for block in blocks)
    return ExitGradients(tuple(exit_layers), names, np.stack(products[::-1]), sums_EC.double().cpu().numpy())


def _top_blocks(blocks: Sequence[_Block], exit_layers: Sequence[int]) -> list[int]:
    """Index of the last block below each exit: its layer, or for the deepest exit the norm, where there is one."""
    tops = list(exit_layers)  # the embedding is block 0, so a layer's number is its block's
    tops[-1] = len(blocks) - 1
    return tops


@torch.no_grad()
def _recorded_trunk(model: TrainingModel, batch: MicroBatch) -> tuple[list[_Block], list[Tensor]]:
    """Run the trunk once; returns its blocks with the arguments of each call, and the exits' states."""
    trunk: Any = model.starEncoder2
    named = [(EMBEDDING, trunk.embed_tokens), *((str(number), layer) for number, layer in enumerate(trunk.layers, start=1))]
    if any(True for _ in trunk.norm.parameters()):
        named.append((NORM, trunk.norm))
    calls: dict[str, tuple[Any, ...]] = {}

    def recorder(name: str) -> Callable[..., None]:
        return lambda _, inputs: calls.__setitem__(name, inputs)

    hooks = [module.register_forward_pre_hook(recorder(name)) for name, module in named]
    states = trunk(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length)
    for hook in hooks:
        hook.remove()
    return [_Block(name, module, calls[name]) for name, module in named], list(states)


def _gradients_of_states(model: TrainingModel, batch: MicroBatch, states: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The gradient of the loss on each exit's state [N, D], and the sums [E, C]; a state enters only its own exit's loss."""
    leaves = [state.detach().requires_grad_() for state in states]
    trunk = model.starEncoder2
    model.starEncoder2 = _GivenStates(leaves)  # type: ignore[assignment]
    try:
        share, sums_EC = model(batch, Denominators(max(batch.num_masked, 1), max(batch.num_rows, 1)))
        return list(torch.autograd.grad(share, leaves)), sums_EC
    finally:
        model.starEncoder2 = trunk


def _through(block: _Block, flowing: dict[int, Tensor], num_exits: int) -> tuple[FLOATS, dict[int, Tensor]]:
    """Back-propagate each exit's gradient through a block: products [E, E] on its parameters, and the gradients on its input."""
    parameters = list(block.module.parameters())
    first, *others = block.inputs
    leaves = parameters
    if first.is_floating_point():
        first = first.detach().requires_grad_()
        leaves = [first, *parameters]
    out = block.module(first, *others)
    found: dict[int, list[Tensor]] = {}
    for index, gradient in flowing.items():
        found[index] = list(torch.autograd.grad(out, leaves, gradient, retain_graph=True))
    on_input = {index: each.pop(0) for index, each in found.items()} if leaves is not parameters else {}
    products_EE = np.zeros((num_exits, num_exits))
    for row, mine in found.items():
        for column, theirs in found.items():
            if column <= row:
                product = sum(float((a.double() * b.double()).sum()) for a, b in zip(mine, theirs, strict=True))
                products_EE[row, column] = products_EE[column, row] = product
    return products_EE, on_input
