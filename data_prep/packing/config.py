"""The config of packing: how chunks become rows."""

from dataclasses import dataclass, replace

from mose.config import require
from mose.dataset.packing_modes import PackingMode

MIN_SEQUENCE_LENGTH = 16


# A record's `.json` member has six characters for `num_tokens`.
MAX_SEQUENCE_LENGTH = 1 << 19


@dataclass(frozen=True)
class PackingConfig:
    """How files become rows `<sep> s1 <sep> s2 ... <cls>`."""

    mode: PackingMode = PackingMode.dense
    """dense: files split into chunks, no token lost, rows nearly full. faithful: the paper's Figure 2 as printed, which loses
    files that do not fit. nsp: two segments per row, a text and its continuation or a text of another repository."""
    sequence_length: int = 2048
    """Token slots of a row."""
    piece_tokens: int = 0
    """Split files into chunks of at most this many tokens, at line ends; 0 means the most of which two chunks fit in a row."""
    look_ahead: int = 32
    """How many chunks of a repository, in random order, are tried to fill the rest of a row (dense)."""
    mixed_share: float = 0.5
    """Share of rows in which two repositories alternate."""
    pool_tokens: int = 16_000_000
    """Tokens that are sampled from the shuffle buffer and packed together; up to twice as many at the end. The buffer holds up to
    twice this number. Only repositories in one sample can share a row, so it should be several times the largest repository."""

    def __post_init__(self) -> None:
        length = self.sequence_length
        require(
            MIN_SEQUENCE_LENGTH <= length <= MAX_SEQUENCE_LENGTH,
            f"packing.sequence_length: is {length}, expected {MIN_SEQUENCE_LENGTH} to {MAX_SEQUENCE_LENGTH}",
        )
        require(
            0 <= self.piece_tokens <= largest_chunk(length),
            f"packing.piece_tokens: is {self.piece_tokens}, expected at most {largest_chunk(length)}, so that two chunks, "
            f"two <sep> and <cls> fit in {length}; or 0 for that",
        )
        require(self.look_ahead > 0, f"packing.look_ahead: is {self.look_ahead}, expected 1 or more")
        require(0 <= self.mixed_share <= 1, f"packing.mixed_share: is {self.mixed_share}, expected a share from 0 to 1")
        require(self.pool_tokens >= length, f"packing.pool_tokens: is {self.pool_tokens}, expected at least a row, {length}")

    def resolve(self) -> "PackingConfig":
        """The same with `piece_tokens` filled in."""
        return replace(self, piece_tokens=self.piece_tokens or largest_chunk(self.sequence_length))


def largest_chunk(sequence_length: int) -> int:
    """The most tokens of a chunk such that two chunks, their two `<sep>` and `<cls>` fit in a row: 1,022 for 2,048."""
    return (sequence_length - 3) // 2
