"""Published runs of models of this size, and what the model of a step says of them: a check of its assumptions."""

from dataclasses import dataclass

from mose.model.cost.step import A100, H100, Communication, Device, Fabric, uncovered

# Assumed of every peer: eight GPUs per node and a card of 200 Gb/s for each.
PEERS_FABRIC = Fabric(node_gpus=8, cards=8, card_gigabits=200)


@dataclass(frozen=True)
class Peer:
    """A published run, counted as its authors do: 6 operations per parameter and token."""

    name: str
    device: Device
    gpus: int
    parameters: float
    tokens: float
    gpu_hours: float
    source: str
    step_tokens: float = 2e6
    """Tokens of a step; 2M where the source does not say."""
    fabric: Fabric = PEERS_FABRIC

    @property
    def published(self) -> float:
        """Share of the peak."""
        return 6 * self.parameters * self.tokens / (self.gpu_hours * 3600 * self.device.peak)

    def kept(self, way: Communication, buckets: int = 22) -> float:
        """Share of one GPU's speed alone that the model leaves on all of them, at this run's own speed."""
        step = self.gpu_hours * 3600 / self.gpus / (self.tokens / self.step_tokens)
        gradients = 2 * (self.gpus - 1) / self.gpus * self.parameters * way.gradient_bytes
        gathered = (self.gpus - 1) / self.gpus * self.parameters * 2 / self.fabric.bus(self.gpus)
        exposed = uncovered(gradients, buckets, step * 2 / 3, self.fabric, self.gpus) + gathered
        return 1 - exposed / step


PEERS = (
    Peer("ESM-2 3B, BioNeMo", A100, 256, 3e9, 1e12, 4.2 * 24 * 256, "arXiv 2411.10548: 256 A100, 4.2 days, over 1T tokens"),
    Peer(
        "TinyLlama 1.1B", A100, 16, 1.1e9, 300e9, 3456, "jzhang38/TinyLlama README: 3,456 GPU-hours per 300B tokens, 2M per step"
    ),
    Peer("ModernBERT-base 149M", H100, 8, 149e6, 1.7e12, 194 * 8, "ModernBERT#236: 1.7T tokens in 194 hours on 8 H100"),
)
