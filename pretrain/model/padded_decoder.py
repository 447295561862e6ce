"""The vocabulary projection on a weight whose rows are padded to a multiple of 64 columns, once per micro-batch for all exits.

A row of 1,028 bf16 values, the width plus the layer index, is 2,056 bytes: rows do not begin at a multiple of 16, so matrix
kernels read them in narrow loads. Zero columns change no product, and 1,028 columns take 17 tiles of 64 in any case.

Letters: M masked tokens, V vocabulary rows, W width of the projection.
"""

import torch.nn.functional as F
from torch import Tensor, nn

TILE = 64


class PaddedDecoder:
    """Replaces a linear layer's forward pass by one on a padded copy of its weight, which `renew` makes."""

    def __init__(self, decoder: nn.Linear, multiple: int = TILE):
        self._decoder = decoder
        self._columns = -decoder.in_features % multiple
        self._padded_VW: Tensor | None = None
        decoder.forward = self._project  # type: ignore[method-assign, assignment]

    def renew(self) -> None:
        """Copy the present weight; call it once per forward pass. The copy stays for the recomputation in the backward pass."""
        self._padded_VW = F.pad(self._decoder.weight, (0, self._columns))

    def _project(self, states_MW: Tensor) -> Tensor:
        assert self._padded_VW is not None
        return F.linear(F.pad(states_MW, (0, self._columns)), self._padded_VW, self._decoder.bias)
