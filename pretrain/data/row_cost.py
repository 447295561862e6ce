"""What training on a row costs, from its number of real tokens: the quantity by which rows are balanced over ranks."""

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
        """FLOPs of the forward pass: layers, attention, and the heads, which run on masked tokens (`masked_share` of all).

        Without the square, two rows of 1,024 tokens would count as costly as one of 2,048; at 1B parameters the attention of a
        full row is an eighth of its cost.
        """
        layers = shape.num_hidden_layers
        attention = 4 * layers * shape.hidden_size
        heads = head_flops(shape, round(1000 * masked_share), 0) // 1000
        return cls(flops_per_row(shape, layers, 1) - attention + heads, attention)

    def of(self, num_tokens_R: INT64_ARRAY) -> INT64_ARRAY:
        """Costs [R] of rows of these lengths; whole numbers, so that every rank computes the same."""
        costs_R: INT64_ARRAY = num_tokens_R * (self.per_token + num_tokens_R * self.per_squared_token)
        return costs_R
