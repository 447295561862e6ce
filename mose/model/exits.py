"""Weights of the exits in a loss that is applied at every exit."""

from collections.abc import Sequence


def exit_weights(exit_layers: Sequence[int], num_layers: int, rule: str = "depth") -> tuple[float, ...]:
    """i / L for each exit after layer i of L (paper section 2.2); by rule `uniform`, their mean for each."""
    by_depth = tuple(layer / num_layers for layer in exit_layers)
    return by_depth if rule == "depth" else (sum(by_depth) / len(by_depth),) * len(by_depth)
