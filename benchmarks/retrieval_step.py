"""A retrieval step against the other ways to do it: without gradient caching, and sentence-transformers' cached loss. CPU.

The same model and texts on both sides. Ours trains all five exits, theirs the deepest. Both tokenize inside the step. The parts
alternate within one run; medians of the CPU seconds of one thread are compared, so that other work on the machine counts little.

python -m benchmarks.retrieval_step [--width 128] [--repeats 5] [--output benchmarks/results/FILE.json]
"""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from benchmarks.process_memory import status_bytes
from data_prep.sources.registry import SourcesConfig
from data_prep.synthconl.mining.pairs import documented_functions
from data_prep.tokenization.train_tokenizer import TokenizerTrainingConfig, train_tokenizer
from finetune.checkpoints import Progress, TrainingCheckpoints
from finetune.config import ONE_WAY, RetrievalConfig
from finetune.distributed import World
from finetune.retrieval.examples import Example, Examples
from finetune.retrieval.loss import trained_loss
from finetune.retrieval.prompts import Prompt, encode_prompts
from finetune.retrieval.trainer import Trainer
from finetune.retrieval.validation import Validation
from mose.checkpoint.converted_checkpoint import random_like, write_checkpoint
from mose.dataset.pairs import Pair, read_pairs, write_pairs
from mose.files.atomic_file import write_json
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.run_directory import RunDirectory

LAYERS, EXITS = 12, [1, 3, 6, 9, 12]
VOCABULARY, MAX_LENGTH = 2048, 256
BATCH_PAIRS, CHUNK_PAIRS = 64, 8
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        config, pairs = prepare(Path(scratch), arguments.width)
        figures = measure(config, pairs, arguments.repeats)
    print(json.dumps(figures, indent=1))
    if arguments.output:
        write_json(arguments.output, figures)


def prepare(scratch: Path, width: int) -> tuple[RetrievalConfig, list[Pair]]:
    """A random model with the 1B model's proportions, but 12 layers, and documented functions of the standard library."""
    library = sysconfig.get_path("stdlib")
    source = SourcesConfig(repositories=(f"{library}/asyncio", f"{library}/email"), include_suffixes=(".py",))
    tokenizer = train_tokenizer(TokenizerTrainingConfig(str(scratch / "tokenizer"), vocabulary_size=VOCABULARY, sources=source))
    shape = ModularStarEncoderConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=12 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=max(4, width // 64),
        num_key_value_heads=max(1, width // 256),
        max_position_embeddings=MAX_LENGTH,
        matryoshka_layers=EXITS,
        attention_dropout=0.0,
        residual_dropout=0.0,
        embedding_dropout=0.0,
    )
    write_checkpoint(scratch / "pretrained", random_like(shape, 0), tokenizer, {})
    found: dict[str, str] = {}
    for path in sorted(Path(library).glob("*.py")):
        for function in documented_functions(path.read_text("utf-8", "replace")):
            found.setdefault(function.summary, function.code)
    # Distinct texts on both sides: no cell of a batch is left out of either loss.
    distinct = {code: text for text, code in found.items()}
    pairs = [Pair(text, code, "Python") for code, text in distinct.items()]
    write_pairs(scratch / "pairs.parquet", pairs)
    places = {"checkpoint": str(scratch / "pretrained"), "pairs": str(scratch / "pairs.parquet"), "output": str(scratch / "run")}
    sizes = {"batch_pairs": BATCH_PAIRS, "chunk_pairs": CHUNK_PAIRS}
    return RetrievalConfig(**places, **sizes, augment_share=0.0, generic_instruction_share=0.0, device="cpu"), pairs


def measure(config: RetrievalConfig, pairs: list[Pair], repeats: int) -> dict[str, Any]:
    """CPU seconds of each kind of step, memory of ours with and without caching, and the cost of validations and checkpoints."""
    examples = Examples(pairs, config.batch_pairs, 0.0, config.seed)
    batches = [examples.at(step) for step in range(repeats + 1)]
    ours, direct = Trainer.build(config, CPU, World(0, 1)), Trainer.build(direct_config(config), CPU, World(0, 1))
    theirs = TheirStep(config, ours)
    difference = theirs.loss_difference(ours, batches[0])
    steps: dict[str, Callable[[Sequence[Example], int], object]] = {"cached": ours.step, "direct": direct.step, "theirs": theirs}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number, batch in enumerate(batches):
        for name, step in steps.items():
            began = time.process_time()
            step(batch, number)
            seconds[name].append(time.process_time() - began)
    # The first step of each pays for what is made once.
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    validation, saving = interval_seconds(config, ours, pairs)
    every = config.validate_every_steps
    kinds = {"cached": config, "direct": direct_config(config)}
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores (1 thread used), {platform.processor() or platform.machine()}, no GPU",
        "shape": {"width": ours.model.config.hidden_size, "layers": LAYERS, "exits": EXITS, "vocabulary": VOCABULARY},
        "batch_pairs": config.batch_pairs,
        "chunk_pairs": config.chunk_pairs,
        "mean_tokens": mean_tokens(ours, batches[0]),
        "repeats": repeats,
        "cpu_seconds_per_step": median,
        "pairs_per_cpu_second": {name: config.batch_pairs / value for name, value in median.items()},
        "theirs_to_ours": median["theirs"] / median["cached"],
        "loss_difference_before_training": difference,
        "cached_to_direct_seconds": median["cached"] / median["direct"],
        "step_memory_mib": {name: memory_of(kind) / 2**20 for name, kind in kinds.items()},
        "validation_cpu_seconds": validation,
        "checkpoint_seconds": saving,
        "validation_and_checkpoint_share": (validation + saving) / (every * median["cached"]),
    }


def direct_config(config: RetrievalConfig) -> RetrievalConfig:
    """The whole batch in one chunk: one pass, and all activations in memory."""
    return replace(config, chunk_pairs=config.batch_pairs)


class TheirStep:
    """sentence-transformers' cached loss on the exported folder, with our optimiser and clipping."""

    def __init__(self, config: RetrievalConfig, trainer: Trainer):
        folder = Path(config.output).parent / "exported"
        write_checkpoint(folder, trainer.model, Path(config.checkpoint), {})
        self._model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
        self._model.max_seq_length = trainer.max_length
        # Their mini-batch is of one side, our chunk of both: as many rows at once.
        self._loss = CachedMultipleNegativesRankingLoss(self._model, config.logit_scale, mini_batch_size=2 * config.chunk_pairs)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self._clipping = config.gradient_clipping
        self._model.train()

    def __call__(self, examples: Sequence[Example], _: int) -> float:
        loss = self._value(examples)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clipping)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()

    def loss_difference(self, trainer: Trainer, examples: Sequence[Example]) -> float:
        """Relative difference of their loss and ours of the same kind at the deepest exit: whether both see the same texts."""
        deepest = trainer.embed([example.query for example in examples] + [example.target for example in examples])[-1]
        none = torch.zeros(len(examples), len(examples), dtype=torch.bool)
        ours = trained_loss(ONE_WAY, *deepest.chunk(2), trainer.config.logit_scale, none)
        theirs = self._value(examples).item()
        return abs(ours.item() - theirs) / theirs

    def _value(self, examples: Sequence[Example]) -> torch.Tensor:
        sides = ([example.query for example in examples], [example.target for example in examples])
        features = [self._model.preprocess([_with_instruction(prompt) for prompt in side]) for side in sides]
        value: torch.Tensor = self._loss(features, None)
        return value


def _with_instruction(prompt: Prompt) -> str:
    return f"{prompt.instruction}<sep>{prompt.text}"


def mean_tokens(trainer: Trainer, examples: Sequence[Example]) -> float:
    """Real tokens of a row, instruction included."""
    prompts = [side for example in examples for side in (example.query, example.target)]
    return statistics.fmean(map(len, encode_prompts(trainer.tokenizer, prompts, trainer.max_length)))


def interval_seconds(config: RetrievalConfig, trainer: Trainer, pairs: list[Pair]) -> tuple[float, float]:
    """CPU seconds of a validation at its default size, wall seconds of a checkpoint (it waits for the disk)."""
    held_out = Validation.of(pairs, config.validation_queries, config.seed)
    began = time.process_time()
    held_out.scores(trainer)
    validation = time.process_time() - began
    checkpoints = TrainingCheckpoints(RunDirectory(Path(config.output)), World(0, 1), {})
    checkpoints.select("never")
    saved = []
    for step in range(1, 4):
        began = time.perf_counter()
        checkpoints.save(Progress(step), trainer.state, keep_last=2)
        saved.append(time.perf_counter() - began)
    return validation, statistics.median(saved)


def memory_of(config: RetrievalConfig) -> int:
    """Bytes that a first step needs beyond what was resident before it (optimiser states included), in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(step_bytes, (config,))


def step_bytes(config: RetrievalConfig) -> int:
    """The growth of this process's peak of memory over a step."""
    torch.set_num_threads(1)
    trainer = Trainer.build(config, CPU, World(0, 1))
    examples = Examples(read_pairs(config.pair_files[0]), config.batch_pairs, 0.0, config.seed)
    before = status_bytes("VmRSS")
    trainer.step(examples.at(0), 0)
    return status_bytes("VmHWM") - before


if __name__ == "__main__":
    main()
