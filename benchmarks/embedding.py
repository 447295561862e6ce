"""`Encoder` against sentence-transformers on the same folder and texts, and exits against each other. One thread, CPU seconds,
medians of passes that take turns, one run.

python -m benchmarks.embedding --checkpoint FINE_TUNED --texts FOLDER [--width 128] [--output benchmarks/results/FILE.json]
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.embedding.encoder import Encoder
from finetune.embedding.search.functions import functions_of_folder
from mose.checkpoint.converted_checkpoint import random_like, retrieval_from_pretrained, write_checkpoint
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.tokenizer import load_tokenizer

SPECIAL = re.compile("<(pad|unk|sep|cls|mask)>")
EXITS = (4, 9, 18, 27, 36)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="A fine-tuned folder; also gives the tokenizer.")
    parser.add_argument("--texts", type=Path, required=True, help="Folder whose functions are embedded.")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--width", type=int, default=128, help="Of the 36-layer model; the 1B model has 1,024.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # sentence-transformers takes code that spells a special token for one; for `Encoder` it is text, as in training.
    codes = [function.code for function in functions_of_folder(options.texts) if not SPECIAL.search(function.code)]
    texts = [codes[place] for place in np.random.default_rng(0).permutation(len(codes))[: options.count]]
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    found: dict[str, Any] = {"date": str(datetime.date.today()), "machine": machine, "texts": len(texts), "threads": 1}
    with tempfile.TemporaryDirectory() as place:
        deep = Path(place) / "deep"
        write_deep(deep, options.checkpoint, options.width)
        few = texts[: max(8, len(texts) // 15)]
        found["fine_tuned_folder"] = against_sentence_transformers(options.checkpoint, texts, options.repeats)
        found["deep_model"] = {
            "shape": f"36 layers, exits {EXITS}, width {options.width}, feed-forward 12 x width, vocabulary of the folder",
            "texts": len(few),
            "last_exit": against_sentence_transformers(deep, few, options.repeats),
            "exit_4": against_sentence_transformers(deep, few, options.repeats, 4),
            "exits": exits_against_each_other(deep, few, options.repeats),
        }
    print(json.dumps(found, indent=1))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def write_deep(folder: Path, checkpoint: Path, width: int) -> None:
    """A model of the 1B proportions but for its width, with random weights."""
    tokenizer = load_tokenizer(checkpoint)
    config = ModularStarEncoderConfig(
        vocab_size=tokenizer.vocabulary_size,
        hidden_size=width,
        intermediate_size=12 * width,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        matryoshka_layers=list(EXITS),
    )
    write_checkpoint(folder, retrieval_from_pretrained(random_like(config, 0), 0), checkpoint, {})


def against_sentence_transformers(folder: Path, texts: Sequence[str], repeats: int, layer: int | None = None) -> dict[str, Any]:
    """CPU seconds of both for the same texts, instruction and weights; the largest difference of an embedding."""
    from sentence_transformers import SentenceTransformer

    options = {} if layer is None else {"exit_layer": layer}
    theirs = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", model_kwargs=options)
    ours = Encoder.from_pretrained(folder, exit=layer, device="cpu")
    passes: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours.encode(texts),
        "sentence_transformers": lambda: theirs.encode(list(texts), show_progress_bar=False),
    }
    largest = float(np.abs(passes["ours"]() - passes["sentence_transformers"]()).max())
    seconds = cpu_seconds(passes, repeats)
    return {
        "cpu_seconds": seconds,
        "theirs_to_ours": seconds["sentence_transformers"] / seconds["ours"],
        "largest_difference": largest,
    }


def exits_against_each_other(folder: Path, texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Exit 4 against 36; five exits in one pass against five passes, each to its exit or each through the whole model."""
    whole = Encoder.from_pretrained(folder, exit=EXITS, device="cpu")
    single = {layer: whole.at((layer,)) for layer in whole.exits}
    passes: dict[str, Callable[[], Any]] = {
        f"exit_{layer}": lambda each=each: each.encode(texts) for layer, each in single.items()
    }
    passes["five_exits_in_one_pass"] = lambda: whole.encode_exits(texts)
    seconds = cpu_seconds(passes, repeats)
    each_to_its_exit = sum(seconds[f"exit_{layer}"] for layer in whole.exits)
    one_pass = seconds["five_exits_in_one_pass"]
    return {
        "cpu_seconds": seconds,
        "exit_36_to_exit_4": seconds["exit_36"] / seconds["exit_4"],
        "five_passes_through_the_model_to_one": 5 * seconds["exit_36"] / one_pass,
        "five_passes_each_to_its_exit_to_one": each_to_its_exit / one_pass,
        "layers_of_five_passes_to_one": sum(EXITS) / EXITS[-1],
    }


def cpu_seconds(passes: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each pass; they take turns, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(repeats + 1):
        for name, run in passes.items():
            started = time.process_time()
            run()
            if turn:
                times[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
