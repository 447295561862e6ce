"""Rows [B, T] with padding on either side: packed for the trunk, which runs on tokens [N], and put back.

Letters: B rows, T slots, N tokens that the trunk sees, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class UnpaddedRows:
    """Rows without their padding: where each real token lies in [B * T], and the rows' bounds."""

    indices_N: Tensor
    positions_N: Tensor
    cu_seqlens: Tensor
    max_length: int
    shape: tuple[int, int]

    @property
    def last_B(self) -> Tensor:
        """Index into N of each row's last real token, which is `<cls>`; of no use for rows without tokens."""
        return self.cu_seqlens[1:].long() - 1

    def pack(self, values_BT: Tensor) -> Tensor:
        """Values [B, T, ...] of the real tokens, [N, ...]."""
        return values_BT.flatten(0, 1)[self.indices_N]

    def pad(self, states_ND: Tensor) -> Tensor:
        """Put states back into [B, T, D]; padding slots are zero."""
        padded = states_ND.new_zeros(self.shape[0] * self.shape[1], states_ND.shape[-1])
        return padded.index_copy(0, self.indices_N, states_ND).view(*self.shape, states_ND.shape[-1])

    def last(self, states_ND: Tensor) -> Tensor:
        """The state [B, D] of each row's last real token; zero for a row without tokens."""
        if self.indices_N.numel() == 0:
            return states_ND.new_zeros(self.shape[0], states_ND.shape[-1])
        # Without the mask, a row without tokens would get the last state of the row before it.
        real_B1 = self.cu_seqlens.diff()[:, None] > 0
        return states_ND[self.last_B.clamp_min(0)].where(real_B1, 0.0)


@dataclass
class DenseRows:
    """Rows with their padding: every shape follows from B and T, which `torch.export` and padded attention need."""

    mask_BT: Tensor

    @property
    def positions_N(self) -> Tensor:
        """Real tokens counted from 0, whichever side is padded."""
        return (self.mask_BT.long().cumsum(dim=1) - 1).clamp_min(0).flatten()

    @property
    def cu_seqlens(self) -> Tensor:
        """The mask [B, T], in the place of the bounds that unpadded rows have."""
        return self.mask_BT

    @property
    def max_length(self) -> int:
        """T."""
        return self.mask_BT.shape[1]

    @property
    def last_B(self) -> Tensor:
        """Index into N = B * T of each row's last real token; of no use for rows without tokens."""
        batch, slots = self.mask_BT.shape
        places_T = torch.arange(slots, device=self.mask_BT.device)
        starts_B = torch.arange(batch, device=self.mask_BT.device) * slots
        return starts_B + (self.mask_BT.long() * places_T).amax(dim=1)

    def pack(self, values_BT: Tensor) -> Tensor:
        """Values [B, T, ...] of all slots, [B * T, ...]."""
        return values_BT.flatten(0, 1)

    def pad(self, states_ND: Tensor) -> Tensor:
        """States [B, T, D]; padding slots are zero."""
        return states_ND.view(*self.mask_BT.shape, states_ND.shape[-1]).where(self.mask_BT[:, :, None], 0.0)

    def last(self, states_ND: Tensor) -> Tensor:
        """The state [B, D] of each row's last real token; zero for a row without tokens."""
        return states_ND[self.last_B].where(self.mask_BT.any(dim=1, keepdim=True), 0.0)


Rows = UnpaddedRows | DenseRows


def unpad(attention_mask_BT: Tensor) -> UnpaddedRows:
    """Find the real tokens of left- or right-padded rows; positions count real tokens from 0."""
    mask_BT = attention_mask_BT.bool()
    lengths_B = mask_BT.sum(dim=1)
    positions_BT = mask_BT.long().cumsum(dim=1) - 1
    cu_seqlens = F.pad(lengths_B.cumsum(0), (1, 0)).to(torch.int32)
    indices_N = mask_BT.flatten().nonzero().squeeze(1)
    shape = (mask_BT.shape[0], mask_BT.shape[1])
    longest = int(lengths_B.max()) if shape[0] else 0
    return UnpaddedRows(indices_N, positions_BT[mask_BT], cu_seqlens, longest, shape)
