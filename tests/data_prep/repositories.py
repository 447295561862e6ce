"""Small made-up repositories in folders, and configs that pack them: shared by the tests of packing."""

import hashlib
from pathlib import Path

from tokenizers import Tokenizer as HuggingFace
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_prep.packing.config import PackingConfig
from data_prep.pipeline.config import PackConfig
from data_prep.sources.registry import SourcesConfig
from mose.seeding import generator
from mose.tokenizer import HUGGING_FACE_NAME, Tokenizer, load_tokenizer
from tests.datasets import make_tokenizer

WORDS = ("value", "index", "total", "name", "state", "x", "y", "count", "items", "result")
VOCABULARY_SIZE = 600
SEQUENCE_LENGTH = 128


def make_repositories(folder: Path, count: int = 24, seed: int = 0) -> Path:
    """`count` repositories of a few Python files each, of very different sizes."""
    random = generator(seed, "repositories")
    for number in range(count):
        repository = folder / f"repository-{number:02d}"
        repository.mkdir(parents=True)
        for file in range(int(random.integers(2, 9))):
            (repository / f"file_{file}.py").write_text(made_text(random.integers(1, 40), f"{seed}.{number}.{file}"), "utf-8")
    return folder


def made_text(num_lines: int, name: str) -> str:
    """Python-like lines that no other name gives."""
    random = generator(0, "text", name)
    lines = [f"def f_{name.replace('.', '_')}(x):"]
    for _ in range(num_lines):
        a, b, c = (WORDS[i] for i in random.integers(len(WORDS), size=3))
        lines.append(f"    {a}[{random.integers(1000)}] = {b} + {c}")
    return "\n".join(lines) + "\n"


def make_config(folder: Path, repositories: int = 24, **changes: object) -> PackConfig:
    """A config that packs `folder/repositories` into `folder/dataset`; makes what is missing of its inputs."""
    if not (folder / "repositories").exists():
        make_repositories(folder / "repositories", repositories)
    if not (folder / "tokenizer").exists():
        make_tokenizer(folder / "tokenizer", VOCABULARY_SIZE)
    fields: dict[str, object] = {
        "output": str(folder / "dataset"),
        "tokenizer": str(folder / "tokenizer"),
        "sources": SourcesConfig(directories=(str(folder / "repositories"),)),
        "packing": PackingConfig(sequence_length=SEQUENCE_LENGTH, pool_tokens=4000),
        "num_tasks": 3,
        "held_out_fraction": 0.2,
    }
    return PackConfig(**{**fields, **changes})  # type: ignore[arg-type]


def make_byte_level_tokenizer(folder: Path) -> Tokenizer:
    """Write `folder/tokenizer.json`, a byte-level BPE with the special tokens of StarCoder2's, and load it."""
    tokenizer = HuggingFace(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<sep>", "<cls>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["def f(x):\n    return x\n\n\tif x:\r\n        pass\n"] * 20, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / HUGGING_FACE_NAME))
    return load_tokenizer(folder)


def checksums(folder: Path, without: tuple[str, ...] = ("config.yaml",)) -> dict[str, str]:
    """SHA-256 of every file below a folder by name; the config says how many workers there were, so it is left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in without)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
