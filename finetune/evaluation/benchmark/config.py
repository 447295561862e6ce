"""The config of `mose-finetune benchmark`."""

from dataclasses import dataclass, field
from pathlib import Path

from finetune.config import EvaluationConfig
from finetune.evaluation.tasks.parts.problem import Options
from mose.config import require
from mose.dataset.manifest import SPLITS


@dataclass(frozen=True)
class BenchmarkConfig:
    """Models x benchmarks, every exit in one pass; a killed run continues with the same command."""

    models: dict[str, str]
    """Name -> model: a folder of our retrieval checkpoint, classifier:FOLDER, sentence-transformers:NAME_OR_FOLDER,
    server:URL#MODEL (OpenAI-compatible embeddings), tfidf, or bm25."""
    output: str
    """Folder for benchmark.json, benchmark.md, figures/ and the embeddings; the same one continues a killed run."""
    tasks: dict[str, list[str]] = field(default_factory=dict)
    """Task -> its files, in the order of finetune/evaluation/tasks/registry.py; TASK:LABEL scores a task on other files."""
    mteb_tasks: tuple[str, ...] = ()
    """Tasks of mteb by name, as [CosQA,CodeSearchNetCCRetrieval]: mteb loads their data and scores each exit as a model."""
    split: str = "held_out"
    """Split of the files to score: held_out or train; a file of another split is refused."""
    distractors: int = 999
    """Other documents each query is ranked against, where a task has distractors (paper section 6.1)."""
    max_queries: int = 0
    """Score only this many queries of each part, drawn with the seed; 0 scores all. Documents stay whole."""
    max_length: int = 0
    """Longest text in tokens; 0 takes each model's longest row."""
    flops_tokens: int = 512
    """Row length in tokens that GFLOPs are given for."""
    resamples: int = 2000
    """Bootstrap resamples of the intervals."""
    permutations: int = 10_000
    """Permutations of the tests between exits (paper Fig. 4)."""
    chunk_tokens: int = 16_384
    """Tokens run through the model at once; it bounds memory."""
    block_texts: int = 512
    """Texts whose embeddings are written at once; a killed run loses one such block."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the embedding server's key."""
    server_timeout_seconds: float = 60.0
    """Longest wait for one answer of an embedding server."""
    server_attempts: int = 3
    """Attempts of each request, with growing waits between them."""
    server_max_characters: int = 16_000
    """Characters of a text that are sent to an embedding server."""
    remote_code: bool = False
    """Run Python code that a sentence-transformers model brings with it."""
    seed: int = 0
    """Decides distractors, drawn queries, bootstrap and permutations."""
    device: str = "auto"
    """auto, cpu or cuda."""
    bf16: bool = True
    """On a GPU, run our models in bfloat16 autocast."""

    def __post_init__(self) -> None:
        require(bool(self.models), "models: none, expected NAME: MODEL for each model to score")
        require(bool(self.tasks or self.mteb_tasks), "tasks: none, expected TASK: [FILE, ...] for each task, or mteb_tasks")
        require(self.split in SPLITS, f"split: {self.split!r}, expected one of {', '.join(SPLITS)}")
        for name in ("distractors", "resamples", "permutations", "chunk_tokens", "block_texts", "flops_tokens"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}, expected 1 or more")
        for name in ("server_attempts", "server_max_characters"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}, expected 1 or more")
        for name in ("max_queries", "max_length"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)}, expected 0 or more")
        timeout = self.server_timeout_seconds
        require(timeout > 0, f"server_timeout_seconds: {timeout}, expected a number above 0")
        for name in self.models:
            # Names become folders, and rows of a Markdown table.
            require(bool(name.strip()) and not set(name) & set("/\\|\0"), f"models: {name!r}, expected a name without / \\ and |")

    @classmethod
    def of_evaluation(cls, config: EvaluationConfig) -> "BenchmarkConfig":
        """One checkpoint on one benchmark, TF-IDF and BM25 beside, from the config of `mose-finetune evaluate`.

        Raises:
            MoseError: an option is given that only other tasks have.
        """
        for name in ("bag_steps", "max_queries_per_repository", "compare"):
            require(
                not getattr(config, name), f"{name}: {getattr(config, name)!r}, expected none: {config.task} has no such option"
            )
        return cls(
            models={"checkpoint": config.checkpoint, "TF-IDF": "tfidf", "BM25": "bm25"},
            output=config.output,
            tasks={config.task: [str(path) for path in config.pair_files]},
            split=config.split,
            distractors=config.distractors,
            max_queries=config.max_queries,
            max_length=config.max_length,
            flops_tokens=config.flops_tokens or cls.flops_tokens,
            chunk_tokens=config.chunk_tokens,
            seed=config.seed,
            device=config.device,
            bf16=config.bf16,
        )

    @property
    def options(self) -> Options:
        """How files are read."""
        return Options(self.split, self.distractors, self.max_queries, self.seed)

    def files(self, task: str) -> list[Path]:
        """The files of a task."""
        return [Path(file) for file in self.tasks[task]]
