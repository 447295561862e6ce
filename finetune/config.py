"""The configs of `mose-finetune`: each class documents its fields and checks its own values."""

from dataclasses import dataclass
from pathlib import Path

from mose.config import require
from mose.dataset.manifest import SPLITS

DECAYS = (CONSTANT, LINEAR, COSINE) = ("constant", "linear", "cosine")
LOSSES = (CLIP, ONE_WAY, SAME_SIDE) = ("clip", "one_way", "same_side")
HEAD_STARTS = (IDENTITY, WHITENING, RANDOM) = ("identity", "whitening", "random")


@dataclass(frozen=True)
class RetrievalConfig:
    """Contrastive fine-tuning of a converted pre-training checkpoint; defaults are the paper's (section 4.1)."""

    checkpoint: str
    """Folder of a converted checkpoint (`mose-pretrain export`)."""
    pairs: tuple[str, ...] | str
    """Parquet file of pairs, or several as [a.parquet,b.parquet]; their train split is used."""
    output: str
    """Run directory to create; the fine-tuned checkpoint appears in its folder `checkpoint`."""
    steps: int = 20_000
    """Optimiser steps (released model card)."""
    batch_pairs: int = 2048
    """Pairs of a batch, over all ranks; half are code-code where the files give a second snippet (paper section 4.1)."""
    chunk_pairs: int = 64
    """Pairs a rank runs through the model at once; it bounds memory and does not change the gradient."""
    learning_rate: float = 1e-5
    """Peak learning rate of the layers (paper section 4.1)."""
    warmup_steps: int = 0
    """Steps of the linear warm-up; the paper names none for retrieval."""
    decay: str = CONSTANT
    """What follows the warm-up: constant (paper section 4.1), or linear or cosine down to 0 at the last step."""
    embedding_learning_rate_factor: float = 1.0
    """The token embedding's learning rate as a multiple of the layers'."""
    head_learning_rate_factor: float = 1.0
    """The projection heads' learning rate as a multiple of the layers'."""
    head_start: str = IDENTITY
    """First weights of the projection heads: identity (they pass the trunk's states on, centred on the first batches' mean),
    whitening (all directions of the states then vary alike) or random. The paper does not say; a random head takes most of what
    the states hold, and whitening gives most where pre-training was short (docs/decisions.md)."""
    gradient_clipping: float = 1.0
    """Largest norm of the gradient of a step; 0 does not clip. The paper names none for fine-tuning."""
    weight_decay: float = 0.01
    """AdamW's, on matrices only; the paper gives none for fine-tuning, this is torch's default."""
    loss: str = CLIP
    """clip: each query against all targets and each target against all queries (paper section 4.1); one_way: queries against
    targets only; same_side: clip, with the other queries as negatives of a query and the other targets of a target."""
    dimensions: tuple[int, ...] = ()
    """Leading dimensions that are trained to serve alone, as [64,256] (Matryoshka): the loss is the mean over these and the full
    width. The paper has none."""
    exit_layer: int = 0
    """Train this exit alone, on layers 1..exit_layer: the single-exit baseline. 0 trains all exits."""
    logit_scale: float = 10.0
    """Similarities are multiplied by it before the softmax (the paper's temperature, section 4.1)."""
    logit_scale_learning_rate_factor: float = 0.0
    """Above 0 each exit learns its logit scale, up to 100, at this multiple of the layers' learning rate; the paper fixes it."""
    augment_share: float = 0.3
    """Share of code snippets whose frequent words become random strings (paper section 4.1)."""
    generic_instruction_share: float = 0.1
    """Share of code snippets whose instruction names no language: the one that sentence-transformers uses by default."""
    max_length: int = 0
    """Longest prompt in tokens, `<cls>` included; 0 takes the model's longest row."""
    from_random: bool = False
    """Start from random weights of the same shape instead of the checkpoint's: the control."""
    seed: int = 0
    """Decides heads, order, augmentation and dropout."""
    log_every_steps: int = 50
    """Steps of one line in metrics.jsonl, TensorBoard and on the console; values are means over them."""
    checkpoint_every_steps: int = 500
    """Steps between two training checkpoints, from which the same command resumes; 0 saves after the last step only."""
    keep_last_checkpoints: int = 2
    """Training checkpoints to keep; that of the best validation is kept beside them."""
    validate_every_steps: int = 500
    """Steps between two validations on the pairs' held_out split, if there is one; the best is exported as `best`. 0: none."""
    validation_queries: int = 1000
    """Most held-out texts of a validation; each is ranked against the codes of all of them."""
    device: str = "auto"
    """auto, cpu or cuda."""
    bf16: bool = True
    """On a GPU, run the model in bfloat16 autocast; weights and optimiser stay float32."""

    def __post_init__(self) -> None:
        _require_pairs(self.pairs)
        for name in ("steps", "chunk_pairs", "log_every_steps", "keep_last_checkpoints"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}, expected 1 or more")
        require(self.batch_pairs >= 2, f"batch_pairs: {self.batch_pairs}, expected 2 or more (the others are the negatives)")
        for name in ("learning_rate", "logit_scale"):
            require(getattr(self, name) > 0, f"{name}: {getattr(self, name)}, expected a number above 0")
        factors = ("embedding_learning_rate_factor", "head_learning_rate_factor", "logit_scale_learning_rate_factor")
        for name in (*factors, "gradient_clipping", "weight_decay", "exit_layer"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)}, expected 0 or more")
        most = self.steps if self.decay == CONSTANT else self.steps - 1
        require(0 <= self.warmup_steps <= most, f"warmup_steps: {self.warmup_steps}, expected 0 to {most} of {self.steps} steps")
        for name, choices in (("decay", DECAYS), ("head_start", HEAD_STARTS), ("loss", LOSSES)):
            require(getattr(self, name) in choices, f"{name}: {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        for name in ("augment_share", "generic_instruction_share"):
            require(0 <= getattr(self, name) <= 1, f"{name}: {getattr(self, name)}, expected a share in [0, 1]")
        for name in ("max_length", "checkpoint_every_steps", "validate_every_steps"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)}, expected 0 or more")
        ascending = list(self.dimensions) == sorted(set(self.dimensions)) and min(self.dimensions, default=1) >= 1
        require(ascending, f"dimensions: {list(self.dimensions)}, expected numbers from 1, ascending")
        require(self.validation_queries >= 2, f"validation_queries: {self.validation_queries}, expected 2 or more")

    @property
    def pair_files(self) -> tuple[Path, ...]:
        """The files of `pairs`."""
        return _paths(self.pairs)


@dataclass(frozen=True)
class EvaluationConfig:
    """Text-to-code retrieval at every exit: each query against its own code and distractors (paper section 6.1)."""

    checkpoint: str
    """Folder of a converted retrieval checkpoint (`mose-finetune retrieval`)."""
    pairs: tuple[str, ...] | str
    """File of pairs, or several as [a.parquet,b.parquet]: parquet, or CodeSearchNet's JSON lines (.jsonl, .jsonl.gz)."""
    output: str
    """Folder to write evaluation.json and evaluation.txt into."""
    task: str = "docstring_search"
    """What is scored: a name in finetune/evaluation/tasks/registry.py; the task says what the files of `pairs` hold. A task of
    `mose-finetune benchmark` (poj104, codesearchnet, ...) writes benchmark.json instead of evaluation.json."""
    split: str = "held_out"
    """Split of the pairs to score: held_out or train."""
    distractors: int = 999
    """Other codes each query is ranked against; all of them where the split holds fewer (paper section 6.1)."""
    max_queries: int = 0
    """Score only this many queries, drawn with the seed; 0 scores all. The corpus stays whole."""
    max_queries_per_repository: int = 0
    """Score at most this many queries of each repository, drawn with the seed, so that no large one decides; 0 scores all."""
    bag_steps: int = 0
    """Steps that the bag-of-embeddings baseline is trained for on the train split of the same files; 0 leaves it out."""
    max_length: int = 0
    """Longest prompt in tokens, `<cls>` included; 0 takes the model's longest row."""
    flops_tokens: int = 0
    """Row length in tokens that GFLOPs are given for; 0 takes the mean length of the code prompts scored here."""
    compare: tuple[str, ...] | str = ()
    """NAME=evaluation.json of another run to show beside, or several as [A=a.json,B=b.json]."""
    chunk_tokens: int = 16_384
    """Tokens run through the model at once; it bounds memory."""
    seed: int = 0
    """Decides distractors, drawn queries and bootstrap."""
    device: str = "auto"
    """auto, cpu or cuda."""
    bf16: bool = True
    """On a GPU, run the model in bfloat16 autocast."""

    def __post_init__(self) -> None:
        _require_pairs(self.pairs)
        require(self.split in SPLITS, f"split: {self.split!r}, expected one of {', '.join(SPLITS)}")
        for name in ("distractors", "chunk_tokens"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}, expected 1 or more")
        for name in ("max_queries", "max_queries_per_repository", "bag_steps", "max_length", "flops_tokens"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)}, expected 0 or more")
        for word in _words(self.compare):
            name, _, path = word.partition("=")
            require(bool(name and path), f"compare: {word!r}, expected NAME=evaluation.json")

    @property
    def pair_files(self) -> tuple[Path, ...]:
        """The files of `pairs`."""
        return _paths(self.pairs)

    @property
    def compared(self) -> dict[str, Path]:
        """Name -> evaluation.json of each run to show beside."""
        return {name: Path(path) for name, _, path in (word.partition("=") for word in _words(self.compare))}


@dataclass(frozen=True)
class ReportConfig:
    """One HTML page of a whole run, from data to the scores of every exit; beside it a table as text and a picture."""

    pretrain: str
    """Run directory of the pre-training run."""
    evaluation: str
    """Folder that `mose-finetune evaluate` wrote for the model fine-tuned from it."""
    output: str
    """Folder to write report.html, report.txt and report.png into."""
    control: str | None = None
    """Folder that `mose-finetune evaluate` wrote for the same fine-tuning from random weights."""
    start: str | None = None
    """The same from the weights that pre-training began with, where those are not plain random ones."""
    data: str | None = None
    """Folder of the data set; empty: the one that the run's config names, if it is there."""
    retrieval: str | None = None
    """Run directory of the fine-tuning; empty: the one whose model was scored, if it is there."""
    benchmark: str | None = None
    """Folder that `mose-finetune benchmark` wrote; its table and figures go on the page."""


@dataclass(frozen=True)
class CardConfig:
    """README.md of a model's folder, written again as a card for the Hugging Face Hub: scores with intervals, times, licence."""

    checkpoint: str
    """Folder of a converted checkpoint of any kind; its README.md is replaced."""
    results: tuple[str, ...] | str = ()
    """Folder or file of results to show, or several as [A,B]: evaluation.json, benchmark.json, held_out.json. Empty: those in the
    folder, or in the run directory whose `checkpoint` it is."""
    name: str = ""
    """The model's name in benchmark.json; empty: the model there whose folder this is."""
    licence: str = ""
    """Licence of the weights by the Hub's name, e.g. apache-2.0; empty: left to whoever publishes the folder."""
    measure: bool = True
    """Time each exit on this machine."""
    batch_texts: int = 32
    """Texts of a batch, for texts per second."""
    repeats: int = 15
    """Timed passes of each exit; medians are reported."""
    threads: int = 0
    """torch's threads while timing; 0 leaves torch's own number."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        for name in ("batch_texts", "repeats"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}, expected 1 or more")
        require(self.threads >= 0, f"threads: {self.threads}, expected 0 or more")
        is_plain = all(letter.isascii() and (letter.isalnum() or letter in "-._") for letter in self.licence)
        require(is_plain, f"licence: {self.licence!r}, expected a name such as apache-2.0")

    @property
    def result_paths(self) -> tuple[str, ...]:
        """The folders and files of `results`."""
        return _words(self.results)


@dataclass(frozen=True)
class ClassificationConfig:
    """A classifier of single texts or pairs at every exit of a converted checkpoint; defaults are the paper's (section 4.2)."""

    checkpoint: str
    """Folder of a converted checkpoint (`mose-pretrain export`)."""
    train: tuple[str, ...] | str
    """File of examples, or several as [a.parquet,b.jsonl]: parquet, JSON lines (.jsonl, .jsonl.gz), or BigCloneBench's pairs
    (.txt, one `idx1 idx2 label` per line)."""
    validation: tuple[str, ...] | str
    """Files of examples that the threshold is chosen on; in the same formats."""
    output: str
    """Run directory to create or continue; the fine-tuned model appears in its folder `checkpoint`, that of the best validation
    in `best`, the scores in evaluation.json."""
    test: tuple[str, ...] | str = ()
    """Files of examples to score at the end, with the thresholds of the validation files; empty: only those are scored."""
    functions: str | None = None
    """JSON lines with the `idx` and the text (`func`) of each function that BigCloneBench's pairs name."""
    text_columns: tuple[str, ...] | str = ("func1", "func2")
    """Columns of the texts of an example, one or several as [a,b]: `<sep>a<sep>b<cls>`."""
    label_column: str = "label"
    """Column of the class: whole numbers from 0, or booleans."""
    num_classes: int = 0
    """Number of classes; 0 takes it from the labels of the training files."""
    steps: int = 14_000
    """Optimiser steps (paper section 4.2)."""
    batch_rows: int = 64
    """Examples of a batch, over all ranks (paper section 4.2)."""
    chunk_tokens: int = 16_384
    """Tokens run through the model at once; it bounds memory and does not change the gradient."""
    learning_rate: float = 1e-5
    """Learning rate after the warm-up (paper section 4.2)."""
    warmup_steps: int = 2000
    """Steps of the linear warm-up (paper section 4.2)."""
    decay: str = CONSTANT
    """What follows the warm-up: constant (paper section 4.2), or linear down to 0 after the last step."""
    gradient_clipping: float = 1.0
    """Largest norm of the gradient of a step; 0 does not clip. The paper names none for fine-tuning."""
    weight_decay: float = 0.01
    """AdamW's, on matrices only; the paper gives none for fine-tuning, this is torch's default."""
    max_length: int = 0
    """Longest row in tokens, `<sep>` and `<cls>` included; 0 takes the model's longest row. Longer texts are truncated to
    equal shares of it."""
    from_random: bool = False
    """Start from random weights of the same shape instead of the checkpoint's: the control."""
    seed: int = 0
    """Decides heads, order and dropout."""
    log_every_steps: int = 50
    """Steps of one line in metrics.jsonl, TensorBoard and on the console; values are means over them."""
    checkpoint_every_steps: int = 500
    """Steps between two training checkpoints, from which the same command resumes; 0 saves after the last step only."""
    keep_last_checkpoints: int = 2
    """Training checkpoints to keep; that of the best validation is kept beside them."""
    validate_every_steps: int = 2000
    """Steps between two scorings of the validation files; the step of the best mean F1 over exits is exported as `best`.
    0 scores them at the end only."""
    device: str = "auto"
    """auto, cpu or cuda."""
    bf16: bool = True
    """On a GPU, run the model in bfloat16 autocast; weights and optimiser stay float32."""

    def __post_init__(self) -> None:
        for name in ("train", "validation", "text_columns"):
            words = _words(getattr(self, name))
            require(bool(words) and all(words), f"{name}: none given, expected one or more")
        columns = (*self.columns, self.label_column)
        require(len(set(columns)) == len(columns), f"text_columns: {', '.join(columns)}, expected each column once")
        for name in ("steps", "batch_rows", "chunk_tokens", "log_every_steps", "keep_last_checkpoints"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}, expected 1 or more")
        for name in ("gradient_clipping", "weight_decay", "max_length", "checkpoint_every_steps", "validate_every_steps"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)}, expected 0 or more")
        require(self.learning_rate > 0, f"learning_rate: {self.learning_rate}, expected a number above 0")
        require(self.num_classes != 1 and self.num_classes >= 0, f"num_classes: {self.num_classes}, expected 0, or 2 or more")
        choices = (CONSTANT, LINEAR)
        require(self.decay in choices, f"decay: {self.decay!r}, expected one of {', '.join(choices)}")
        most = self.steps if self.decay == CONSTANT else self.steps - 1
        require(0 <= self.warmup_steps <= most, f"warmup_steps: {self.warmup_steps}, expected 0 to {most} of {self.steps} steps")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of `text_columns`."""
        return _words(self.text_columns)

    @property
    def train_files(self) -> tuple[Path, ...]:
        """The files of `train`."""
        return _paths(self.train)

    @property
    def validation_files(self) -> tuple[Path, ...]:
        """The files of `validation`."""
        return _paths(self.validation)

    @property
    def test_files(self) -> tuple[Path, ...]:
        """The files of `test`."""
        return _paths(self.test)


def _require_pairs(pairs: tuple[str, ...] | str) -> None:
    require(bool(pairs) and all(_words(pairs)), "pairs: no file given, expected one parquet file or more")


def _words(value: tuple[str, ...] | str) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _paths(value: tuple[str, ...] | str) -> tuple[Path, ...]:
    return tuple(Path(word) for word in _words(value))
