"""`mose-finetune card`: writes README.md of a model's folder again, with the scores and times that are known by now."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from finetune.config import CardConfig
from finetune.device import pick_device
from finetune.embedding.encoder import CPU_BATCH_TOKENS, Encoder
from finetune.embedding.exit_costs import measure_exits
from finetune.evaluation.cards.results import require_exits, result_files, scored_tasks
from mose.checkpoint.card_facts import FACTS_NAME, CardResults, ExitTimes, ScoredTask, read_card_facts
from mose.checkpoint.converted_checkpoint import (
    load_classification,
    load_pretrained,
    load_retrieval,
    read_model_config,
    retrieval_from_pretrained,
)
from mose.checkpoint.model_card import CARD_NAME, model_card
from mose.errors import MoseError
from mose.files.atomic_file import write_text
from mose.files.json_file import parse_json
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder, ModularStarEncoderForRetrieval
from mose.tokenizer import load_tokenizer

_TIMED_TOKENS = 128


def card(config: CardConfig) -> None:
    """Collect results, time the exits, and replace the folder's README.md.

    Raises:
        MoseError: the folder is no model of ours, or a result cannot be read or is of another model; the old card is kept.
    """
    folder = Path(config.checkpoint)
    shape = read_model_config(folder)
    layers = shape.exit_layers
    tasks = _tasks(config, folder, layers)
    facts = read_card_facts(folder)
    architecture = (shape.architectures or [ModularStarEncoder.__name__])[0]
    times = measure_times(folder, shape, architecture, config) if config.measure else None
    text = model_card(shape, architecture, facts, CardResults(tuple(tasks), times, config.licence), _is_framed(folder))
    write_text(folder / CARD_NAME, text)
    print(f"card: {folder / CARD_NAME}: {len(tasks)} tasks, {'timed' if times else 'not timed'}")


def _tasks(config: CardConfig, folder: Path, layers: Sequence[int]) -> list[ScoredTask]:
    given = [Path(word) for word in config.result_paths]
    if not given:
        # A run directory holds the folders `checkpoint` and `best` and, of a classifier, the scores of the former.
        near = result_files(folder) or (result_files(folder.parent) if folder.name == "checkpoint" else [])
        if not near:
            print(f"{folder}: no results beside it; --results names some", file=sys.stderr)
        given = near
    tasks = []
    for path in given:
        files = [path] if path.suffix == ".json" else result_files(path)
        if not files:
            raise MoseError(f"{path}: holds no results, expected evaluation.json, benchmark.json or held_out.json")
        for file in files:
            found = scored_tasks(file, folder, config.name)
            require_exits(found, file, layers)
            tasks += found
    return tasks


def measure_times(folder: Path, shape: ModularStarEncoderConfig, architecture: str, config: CardConfig) -> ExitTimes:
    """Time each exit on this machine; a model without projection heads is timed with untrained ones, which cost as much.

    Raises:
        MoseError: the folder's weights cannot be read, or the device cannot be used.
    """
    device = pick_device(config.device)
    model: ModularStarEncoderForRetrieval
    if architecture == ModularStarEncoderForRetrieval.__name__:
        model = load_retrieval(folder)
    else:
        trunk = load_pretrained(folder) if architecture == ModularStarEncoder.__name__ else load_classification(folder)
        model = retrieval_from_pretrained(trunk, seed=0)
    longest = int(shape.max_position_embeddings)
    tokens = min(_TIMED_TOKENS, longest)
    exits = tuple(shape.exit_layers)
    model = model.eval().to(device)
    encoder = Encoder(model, load_tokenizer(folder), exits, device, longest, CPU_BATCH_TOKENS, config.threads)
    costs = measure_exits(encoder, tokens, config.batch_texts, config.repeats)
    threads = f", {config.threads or torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return ExitTimes(
        setting=f"{device}{threads}, float32, texts of {tokens} tokens, batches of {config.batch_texts}, medians",
        query_ms={cost.layer: cost.query_ms for cost in costs},
        texts_per_second={cost.layer: cost.texts_per_second for cost in costs},
        megabytes={cost.layer: cost.megabytes for cost in costs},
    )


def _is_framed(folder: Path) -> bool:
    """Whether the folder's tokenizer adds `<sep>` and `<cls>`: that of the published layout does not."""
    path = folder / FACTS_NAME
    facts = parse_json(path.read_bytes()) if path.is_file() else {}
    return not isinstance(facts, dict) or facts.get("layout", "ours") != "published"
