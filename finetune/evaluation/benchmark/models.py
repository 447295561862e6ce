"""Opens the models that a config names."""

from collections.abc import Iterator
from pathlib import Path

from finetune.evaluation.benchmark.config import BenchmarkConfig
from finetune.evaluation.systems.classifier import ClassifierSystem
from finetune.evaluation.systems.embedding import EmbeddingSystem
from finetune.evaluation.systems.lexical import LEXICAL, LexicalSystem
from finetune.evaluation.systems.mose_model import MoseEmbedder
from finetune.evaluation.systems.sentence_model import SentenceEmbedder
from finetune.evaluation.systems.server import ServerEmbedder
from finetune.evaluation.systems.store import EmbeddingStore
from finetune.evaluation.systems.system import Embedder, System

_CLASSIFIER, _SENTENCES, _SERVER = "classifier:", "sentence-transformers:", "server:"
MOSE = "mose"


def open_models(config: BenchmarkConfig) -> Iterator[System]:
    """Each model of the config, opened when its turn comes: only one is in memory at once.

    Raises:
        MoseError: a model cannot be opened; one line.
    """
    for name, model in config.models.items():
        yield open_model(config, name, model)


def open_model(config: BenchmarkConfig, name: str, model: str) -> System:
    """The model behind one entry of the config's `models`; errors as in `open_models`."""
    if model in LEXICAL:
        return LexicalSystem(name, model)
    if model.startswith(_CLASSIFIER):
        folder = Path(model.removeprefix(_CLASSIFIER))
        return ClassifierSystem(
            name,
            folder,
            max_length=config.max_length,
            chunk_tokens=config.chunk_tokens,
            flops_tokens=config.flops_tokens,
            device=config.device,
            bf16=config.bf16,
        )
    kind, embedder = _embedder(config, model)
    store = EmbeddingStore(Path(config.output) / "embeddings" / name.replace(" ", "-"), name, embedder, config.block_texts)
    return EmbeddingSystem(kind, store)


def _embedder(config: BenchmarkConfig, model: str) -> tuple[str, Embedder]:
    if model.startswith(_SENTENCES):
        source = model.removeprefix(_SENTENCES)
        return "sentence-transformers", SentenceEmbedder(
            source, max_length=config.max_length, device=config.device, remote_code=config.remote_code
        )
    if model.startswith(_SERVER):
        url, _, name = model.removeprefix(_SERVER).partition("#")
        return "server", ServerEmbedder(
            url,
            name,
            key_variable=config.key_variable,
            timeout_seconds=config.server_timeout_seconds,
            attempts=config.server_attempts,
            max_characters=config.server_max_characters,
        )
    return MOSE, MoseEmbedder(
        Path(model),
        max_length=config.max_length,
        chunk_tokens=config.chunk_tokens,
        flops_tokens=config.flops_tokens,
        device=config.device,
        bf16=config.bf16,
    )
