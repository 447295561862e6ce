"""Seeds of dropout inside the trunk: one per place, so that a mask does not depend on what was drawn before it.

With one running generator, activation checkpointing or another ZeRO stage or tensor-parallel size would draw in another order,
and the same run would train on other masks. Here a mask follows from (run's seed, step, micro-batch, data rank), the place
(embedding, layer's attention, layer's residuals) and, only where tensor ranks hold different parts of what is dropped, the
tensor rank: attention heads always, tokens under sequence parallelism. So masks of embedding and residuals are the same at
every tensor-parallel size without sequence parallelism, at every ZeRO stage and under activation checkpointing, which seeds
again when it recomputes. They do depend on the number of data ranks and micro-batches, since a mask is drawn for a micro-batch
as a whole, and on `parallel.compile`, whose kernels use another generator.
"""

from typing import Any

import torch
from torch import nn

from mose.model.modeling_mose import StarEncoder2
from mose.seeding import derive_key


class DropoutSeeds:
    """Seeds torch's default generators before every dropout of a trunk."""

    def __init__(self, tensor_rank: int, *, sequence_parallel: bool):
        """`tensor_rank` enters the seeds of attention heads, and with `sequence_parallel` also those of tokens."""
        self._heads = tensor_rank
        self._tokens = tensor_rank if sequence_parallel else 0
        self._micro_batch = 0

    def begin(self) -> None:
        """Store the seed that the step set in torch for this micro-batch; call it before each forward pass in training."""
        self._micro_batch = torch.initial_seed()

    def attach(self, trunk: StarEncoder2) -> None:
        """Register hooks that seed after the embedding and before and after each attention core, at every recomputation too."""
        trunk.embed_tokens.register_forward_hook(self._hook("embedding", 0, self._tokens))
        layer: Any
        for number, layer in enumerate(trunk.layers):
            core = layer.self_attn.core
            core.register_forward_pre_hook(self._hook("attention", number, self._heads))
            core.register_forward_hook(self._hook("residual", number, self._tokens))

    def _hook(self, place: str, layer: int, tensor_part: int) -> Any:
        def seed(module: nn.Module, *_: Any) -> None:
            if module.training:
                torch.manual_seed(derive_key(self._micro_batch, place, layer, tensor_part) >> 1)

        return seed
