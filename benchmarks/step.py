"""A training step against the other ways to do it: padded rows, one exit, the Hugging Face Trainer. CPU, medians, one run.

The shape has the 1B model's proportions (36 layers, vocabulary 48 and feed-forward 12 times the width, rows twice as long as
the width), real text packed both ways; what is compared sees the same rows, masks and weights.

python -m benchmarks.step [--width 128] [--repeats 5] [--output benchmarks/results/FILE.json]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.padded_reference import PaddedReference, padded_inputs
from data_prep.execution.pack import pack_dataset
from data_prep.packing.config import PackingConfig
from data_prep.pipeline.config import PackConfig
from data_prep.sources.registry import SourcesConfig
from data_prep.tokenization.train_tokenizer import TokenizerTrainingConfig, train_tokenizer
from mose.dataset.manifest import read_manifest
from mose.dataset.packing_modes import PackingMode
from mose.files.atomic_file import write_json
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.model_config import ModelConfig
from mose.model.modeling_mose import ModularStarEncoder
from mose.model.size import flops_per_row, head_flops
from mose.tokenizer import load_tokenizer
from pretrain.config.run import BatchConfig, PretrainConfig
from pretrain.data.loader import BatchPlan, GlobalBatchLoader
from pretrain.data.masking import MASKED_SHARE
from pretrain.data.micro_batch import MicroBatch
from pretrain.data.prefetch import Prefetcher
from pretrain.model.terms.term import Denominators
from pretrain.model.terms.vocabulary import whole_vocabulary
from pretrain.model.training_model import TrainingModel
from pretrain.storage.local_rows import LocalRows

ROWS = 8
LAYERS, EXITS = 36, (4, 9, 18, 27, 36)
Mode = Literal["dense", "faithful"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Path(scratch), arguments.width, arguments.repeats)
    print(json.dumps(figures, indent=1))
    if arguments.output:
        write_json(arguments.output, figures)


def measure(scratch: Path, width: int, repeats: int) -> dict[str, Any]:
    """Numbers of both packings, and the counted cost of the 1B model's heads."""
    source = SourcesConfig(directories=(sysconfig.get_path("stdlib"),), include_suffixes=(".py",), max_repository_bytes=1 << 20)
    config = TokenizerTrainingConfig(output=str(scratch / "tokenizer"), vocabulary_size=48 * width, sources=source)
    tokenizer = train_tokenizer(config)
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores (1 thread used), {platform.processor() or platform.machine()}, no GPU",
        "shape": {"width": width, "layers": LAYERS, "vocabulary": 48 * width, "feed_forward": 12 * width, "slots": 2 * width},
        "rows_a_step": ROWS,
        "five_exits_to_one_by_operations_at_1b": exits_by_operations(),
        **{mode: compare(pack(scratch, tokenizer, source, mode, 2 * width), width, repeats) for mode in ("faithful", "dense")},
    }


def exits_by_operations() -> dict[str, float]:
    """Operations of the 1B model per full row with five exits and with one, and the heads' share of the former."""
    shape = ModularStarEncoderConfig(**ModelConfig().hugging_face())
    encoder = flops_per_row(shape, shape.num_hidden_layers, ModelConfig().max_length)
    heads = head_flops(shape, round(MASKED_SHARE * ModelConfig().max_length), 1)
    return {"ratio": (encoder + heads) / (encoder + heads / len(EXITS)), "heads_share": heads / (encoder + heads)}


def pack(scratch: Path, tokenizer: Path, source: SourcesConfig, mode: Mode, slots: int) -> Path:
    """Real text as rows of `slots` tokens."""
    packing = PackingConfig(mode=PackingMode(mode), sequence_length=slots)
    output = str(scratch / mode)
    pack_dataset(PackConfig(output, str(tokenizer), sources=source, packing=packing, num_tasks=1, held_out_fraction=0.0))
    return scratch / mode


def compare(dataset: Path, width: int, repeats: int) -> dict[str, Any]:
    """Ratios and CPU seconds per step on the same rows of one data set."""
    batches = batches_of(dataset, repeats + 1)
    slots = read_manifest(dataset).sequence_length
    model = ModelConfig(
        vocabulary_size=read_manifest(dataset).vocabulary_size,
        width=width,
        feed_forward_width=12 * width,
        num_heads=max(4, width // 64),
        num_key_value_heads=max(1, width // 256),
        max_length=slots,
        attention_dropout=0.0,
        residual_dropout=0.0,
        embedding_dropout=0.0,
    )
    ours, single = unpadded_step(model), unpadded_step(model, (LAYERS,))
    padded, trainer = padded_step(model, slots), TrainerSteps(model, batches, slots)
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", "one_exit", "padded")}
    losses: dict[str, list[float]] = {name: [] for name in seconds}
    for batch in batches:
        for name, step in (("ours", ours), ("one_exit", single), ("padded", padded)):
            began = time.process_time()
            losses[name].append(step(batch))
            seconds[name].append(time.process_time() - began)
    seconds["trainer"], losses["trainer"] = trainer.run()
    # The first step of each pays for what is made once.
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    fill = sum(batch.num_tokens for batch in batches) / (len(batches) * ROWS * slots)
    return {
        "fill": fill,
        "cpu_seconds_a_step": median,
        "padded_to_unpadded": median["padded"] / median["ours"],
        "bar": 0.9 / fill,
        "five_exits_to_one": median["ours"] / median["one_exit"],
        "trainer_to_ours": median["trainer"] / median["ours"],
        "loader_wait_share": loader_wait(dataset, ours, repeats),
        "largest_loss_difference": {
            name: max(abs(a - b) / b for a, b in zip(losses["ours"], losses[name], strict=True)) for name in ("padded", "trainer")
        },
    }


def loader_of(dataset: Path) -> GlobalBatchLoader:
    """The loader of a run on one rank."""
    tokenizer = load_tokenizer(dataset)
    return GlobalBatchLoader(LocalRows(dataset, "train"), BatchPlan(0, ROWS, ROWS, tokenizer.special, tokenizer.ordinary_ids()))


def batches_of(dataset: Path, count: int) -> list[MicroBatch]:
    """The first global batches of a run, each one micro-batch."""
    loader = loader_of(dataset)
    return [loader.share(step * ROWS)[0] for step in range(count)]


def loader_wait(dataset: Path, step: Callable[[MicroBatch], float], count: int) -> float:
    """Share of the wall time of `count` steps spent waiting for rows, without the first step."""
    waited, began = 0.0, 0.0
    with Prefetcher(loader_of(dataset), 0) as prefetcher:
        for number in range(count + 1):
            (batch,) = prefetcher.take()
            waited += prefetcher.last_wait_seconds if number else 0.0
            step(batch)
            began = began or time.perf_counter()
    return waited / (time.perf_counter() - began)


def _encoder(model: ModelConfig, exits: tuple[int, ...] = EXITS) -> ModularStarEncoder:
    torch.manual_seed(0)
    return ModularStarEncoder(ModularStarEncoderConfig(**{**model.hugging_face(), "matryoshka_layers": list(exits)}))


def unpadded_step(model: ModelConfig, exits: tuple[int, ...] = EXITS) -> Callable[[MicroBatch], float]:
    """Our model and loss under the same optimiser as the others."""
    training = TrainingModel(_encoder(model, exits), whole_vocabulary(model.vocabulary_size))
    return _step(training, lambda batch: training(batch, Denominators(batch.num_masked, batch.num_rows))[0])


def padded_step(model: ModelConfig, slots: int) -> Callable[[MicroBatch], float]:
    """transformers' padded trunk; the heads see masked positions only, so that padding is the whole difference."""
    reference = PaddedReference(_encoder(model), full_logits=False)
    return _step(reference, lambda batch: reference(**padded_inputs(batch, slots))["loss"])


def _step(module: nn.Module, loss_of: Callable[[MicroBatch], Tensor]) -> Callable[[MicroBatch], float]:
    defaults = PretrainConfig(batch=BatchConfig(global_rows=ROWS)).optimizer
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=defaults.weight_decay)

    def step(batch: MicroBatch) -> float:
        loss = loss_of(batch)
        loss.backward()
        clip_grad_norm_(module.parameters(), defaults.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


class TrainerSteps(TrainerCallback):  # type: ignore[misc]
    """The Hugging Face Trainer on padded rows and full logits, one step per batch, timed from inside."""

    def __init__(self, model: ModelConfig, batches: list[MicroBatch], slots: int):
        self._module = PaddedReference(_encoder(model), full_logits=True)
        self._batches = [padded_inputs(batch, slots) for batch in batches]
        self._seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The batch is loaded; forward begins."""
        self._began = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The optimiser has stepped."""
        self._seconds.append(time.process_time() - self._began)

    def run(self) -> tuple[list[float], list[float]]:
        """CPU seconds and loss of every step."""
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                output_dir=folder,
                max_steps=len(self._batches),
                per_device_train_batch_size=ROWS,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                weight_decay=0.1,
                max_grad_norm=1.0,
                logging_steps=1,
                logging_nan_inf_filter=False,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                dataloader_num_workers=0,
                train_sampling_strategy="sequential",
            )
            rows = [{name: values[row] for name, values in batch.items()} for batch in self._batches for row in range(ROWS)]
            trainer = Trainer(model=self._module, args=settings, train_dataset=rows, callbacks=[self])
            trainer.train()
        return self._seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
