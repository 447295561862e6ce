"""What training on a row costs, by its real tokens: by this, not by tokens alone, rows are dealt to ranks."""

from dataclasses import dataclass

from mose.array_types import INT64_ARRAY
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.size import flops_per_row, head_flops


@dataclass(frozen=True)
class RowCost:
    """A row of n real tokens costs `per_token` * n + `per_squared_token` * n**2, in any unit; the default counts tokens."""

    per_token: int = 1
    per_squared_token: int = 0

    @classmethod
    def of_model(cls, shape: ModularStarEncoderConfig, masked_share: float) -> "RowCost":
        """FLOPs of the forward pass: layers and attention, and the heads' share of a token of which so many are masked.

        Leaving the square out would call 2,048 tokens in two rows as dear as in one: at 1B a full row's attention is an
        eighth of it.
        """
        layers = shape.num_hidden_layers
        attention = 4 * layers * shape.hidden_size
        heads = head_flops(shape, round(1000 * masked_share), 0) // 1000
        return cls(flops_per_row(shape, layers, 1) - attention + heads, attention)

    def of(self, num_tokens_R: INT64_ARRAY) -> INT64_ARRAY:
        """Costs [R] of rows of these lengths; whole numbers, so that every rank comes to the same."""
        costs_R: INT64_ARRAY = num_tokens_R * (self.per_token + num_tokens_R * self.per_squared_token)
        return costs_R
