"""The configs of the commands that use a fine-tuned model: each class documents its fields and checks its own values."""

from dataclasses import dataclass
from pathlib import Path

from mose.config import require
from mose.dataset.manifest import SPLITS


@dataclass(frozen=True)
class SearchConfig:
    """Questions answered with functions, at several exits side by side or by a cascade of two.

    The index of a folder is kept in a file and brought up to date by each search: only new or changed functions are embedded.
    """

    checkpoint: str
    """Folder of a converted retrieval checkpoint (`mose-finetune retrieval`)."""
    pairs: tuple[str, ...] | str = ()
    """File of pairs to draw questions and functions from, or several as [a.parquet,b.parquet]; not with a folder."""
    split: str = "held_out"
    """Split of the pairs: held_out or train."""
    questions: int = 10
    """Questions to draw from the pairs, of as many repositories as there are."""
    exits: tuple[int, ...] = ()
    """Layers of the exits that answer; empty: the shallowest and the deepest."""
    cascade: int = 0
    """Candidates that the shallowest of the exits recalls and the deepest orders; the latter embeds only these, when they are
    first needed. 0: each exit answers alone. For folders."""
    top: int = 3
    """Functions to show for each question and exit."""
    index: str | None = None
    """File of a folder's index; default: one for each folder and model in $XDG_CACHE_HOME/mose/search (~/.cache)."""
    json: bool = False
    """Print the answers as JSON."""
    max_length: int = 0
    """Longest prompt in tokens, `<cls>` included; 0 takes the model's longest row."""
    chunk_tokens: int = 0
    """Tokens run through the model at once; 0 chooses by device. It bounds memory."""
    threads: int = 0
    """torch's threads; 0 leaves torch's own number."""
    seed: int = 0
    """Decides which questions are drawn."""
    device: str = "auto"
    """auto, cpu or cuda."""
    bf16: bool = True
    """On a GPU, run the model in bfloat16."""

    def __post_init__(self) -> None:
        require(self.split in SPLITS, f"split: {self.split!r}, expected one of {', '.join(SPLITS)}")
        for name in ("questions", "top"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}, expected 1 or more")
        for name in ("max_length", "chunk_tokens", "threads", "cascade"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)}, expected 0 or more")

    @property
    def pair_files(self) -> tuple[Path, ...]:
        """The files of `pairs`."""
        words = (self.pairs,) if isinstance(self.pairs, str) else self.pairs
        return tuple(Path(word) for word in words)
