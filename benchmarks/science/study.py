"""The config of the study: which of the paper's claims are tried, at which scale, over which seeds."""

from dataclasses import dataclass
from pathlib import Path

from mose.config import require

PRETRAINED, SELF_DISTILLED, ICC_NSP, ABLATIONS = (
    "pretrained_vs_random",
    "self_distilled_vs_single_exit",
    "icc_vs_nsp",
    "ablations",
)
PARTS = (PRETRAINED, SELF_DISTILLED, ICC_NSP, ABLATIONS)
SINGLE_EXIT = "single_exit"
# Files of configs/ablations that lie over any model; single_exit stands for one run per exit of the recipe's model.
OVERLAYS = ("uniform_weights", "no_layer_index", "mlm_only", "distillation")


@dataclass(frozen=True)
class StudyConfig:
    """The paper's claims in small. Every run takes the recipe's configs and changes only what is named here."""

    output: str = "science"
    """Folder of data, runs and scores; the same command continues in it."""
    recipe: str = "configs/quickstart"
    """Folder with tokenizer.yaml, pack.yaml, pairs.yaml, pretrain.yaml, retrieval.yaml and evaluate.yaml."""
    parts: tuple[str, ...] = PARTS
    """Comparisons to run: pretrained_vs_random, self_distilled_vs_single_exit, icc_vs_nsp, ablations."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, masks, order and heads. Data, held-out repositories, queries and candidates are the same for each."""
    pretrain_steps: int = 0
    """Optimiser steps of pre-training; 0 takes the recipe's. Another number stretches a line to zero and milestones with it."""
    retrieval_steps: int = 0
    """Optimiser steps of fine-tuning; 0 takes the recipe's."""
    held_out_rows: int = 1024
    """Held-out rows for the masked-token loss and the task on whole rows."""
    queries_per_repository: int = 50
    """Most queries of each held-out repository, so that no large one decides."""
    evaluation_files: tuple[str, ...] = ()
    """More files of pairs to score (parquet, or CodeSearchNet's .jsonl or .jsonl.gz): other languages, other sources."""
    queries_per_file_repository: int = 250
    """Most queries of each repository of an evaluation file."""
    ablations: tuple[str, ...] = (*OVERLAYS, SINGLE_EXIT)
    """Files of configs/ablations to run in the part ablations, and single_exit: each exit pre-trained alone."""
    workers: int = 2
    """Commands that run at a time, each on its share of the cores; 1 on a machine with one GPU."""
    minutes: float = 0.0
    """Start no command after this time; the next call continues. 0: no limit."""

    def __post_init__(self) -> None:
        for name, known in (("parts", PARTS), ("ablations", (*OVERLAYS, SINGLE_EXIT))):
            for word in getattr(self, name):
                require(word in known, f"{name}: {word!r}, expected some of {', '.join(known)}")
        require(bool(self.parts), "parts: none given, expected one or more")
        require(
            len(set(self.seeds)) == len(self.seeds) > 0, f"seeds: {list(self.seeds)}, expected different numbers, one or more"
        )
        for name in ("held_out_rows", "queries_per_repository", "queries_per_file_repository", "workers"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}, expected 1 or more")
        for name in ("pretrain_steps", "retrieval_steps", "minutes"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)}, expected 0 or more")
        stems = [file_stem(file) for file in self.evaluation_files]
        require(len(set(stems)) == len(stems), f"evaluation_files: {', '.join(stems)}, expected files of different names")

    @property
    def folder(self) -> Path:
        """`output` as a path."""
        return Path(self.output)

    def recipe_file(self, name: str) -> Path:
        """One config of the recipe, e.g. `pretrain`."""
        return Path(self.recipe) / f"{name}.yaml"


def file_stem(file: str) -> str:
    """The name by which an evaluation file's scores are known: its file name up to the first dot."""
    return Path(file).name.split(".")[0]
