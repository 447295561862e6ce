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


@dataclass(frozen=True)
class EmbedConfig:
    """Texts of files embedded at one or several exits. The same command continues a run that was killed."""

    checkpoint: str
    """Folder of a converted retrieval checkpoint (`mose-finetune retrieval`)."""
    input: str
    """JSON lines (.jsonl, .jsonl.gz), a parquet file, or a folder: each text file below it is one text."""
    output: str
    """File to write: .npy ([R, D] float32; with several exits NAME.exit_04.npy, ...; ids in NAME.ids.jsonl) or .parquet (columns
    `id` and `exit_04`, ...). What the vectors are of is written beside, as OUTPUT.json."""
    exits: tuple[int, ...] = ()
    """Layers of the exits; empty: the deepest."""
    kind: str = "code"
    """code, or query for descriptions in plain words: it decides the instruction in front of each text."""
    language: str = ""
    """Language of all texts, where they are code; empty: the instruction without one. Of a folder, each file's own."""
    instruction: str | None = None
    """Put in front of each text in place of the model's own instruction."""
    text_column: str = "text"
    """Field of the text."""
    id_column: str = ""
    """Field of the id, which must be unique; empty: rows are counted from 0. Of a folder, the file's path."""
    language_column: str = ""
    """Field of the language of each text; empty: `language`."""
    part_rows: int = 2048
    """Texts that are embedded between two saves: what a kill loses, for each process."""
    max_length: int = 0
    """Longest prompt in tokens, `<cls>` included; 0 takes the model's longest row."""
    batch_tokens: int = 0
    """Tokens run through the model at once; 0 chooses by device. It bounds memory."""
    workers: int = 1
    """Processes, each with a model of its own."""
    threads: int = 0
    """torch's threads in each process; 0 leaves torch's own number, or 1 where there are several processes."""
    device: str = "auto"
    """auto, cpu or cuda."""
    dtype: str = "float32"
    """float32 or bfloat16: what the model computes in; vectors are stored in float32."""

    def __post_init__(self) -> None:
        suffix = Path(self.output).suffix
        require(suffix in (".npy", ".parquet"), f"output: {self.output!r}, expected a name that ends in .npy or .parquet")
        for name in ("part_rows", "workers"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}, expected 1 or more")
        for name in ("max_length", "batch_tokens", "threads"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)}, expected 0 or more")
        require(bool(self.text_column), "text_column: empty, expected a field's name")


@dataclass(frozen=True)
class ChooseExitConfig:
    """Time and size of each exit on this machine, and the exit for a budget."""

    checkpoint: str
    """Folder of a converted retrieval checkpoint (`mose-finetune retrieval`)."""
    exits: tuple[int, ...] = ()
    """Layers of the exits; empty: all."""
    tokens: int = 0
    """Tokens of each text that is timed; 0 takes 128, or the model's longest row where that is less."""
    batch_texts: int = 32
    """Texts of a batch, for texts per second."""
    repeats: int = 15
    """Timed passes of each exit; medians are reported. Exits take turns, so that a busy machine slows all alike."""
    budget_ms: float = 0.0
    """Milliseconds that one query may take; 0: any."""
    queries_per_second: float = 0.0
    """Texts per second that must be embedded in batches; 0: any."""
    evaluation: str | None = None
    """An evaluation.json of `mose-finetune evaluate` for this model: the exit of the best score is chosen, not the deepest."""
    score: str = "mrr"
    """Name of the score in that file."""
    json: bool = False
    """Print JSON."""
    threads: int = 0
    """torch's threads; 0 leaves torch's own number."""
    device: str = "auto"
    """auto, cpu or cuda."""
    dtype: str = "float32"
    """float32 or bfloat16."""

    def __post_init__(self) -> None:
        for name in ("batch_texts", "repeats"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}, expected 1 or more")
        for name in ("tokens", "budget_ms", "queries_per_second", "threads"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), f"{name}: {value}, expected 0 or more")
