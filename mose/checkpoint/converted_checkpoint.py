"""The converted checkpoint: one Hugging Face folder that transformers and this project open alike, at any exit.

`config.json`, `model.safetensors`, the tokenizer, the model's own source files, `facts.json` (what made it) and its card; the
exporter adds `parity.json`, the largest difference to the training model at each exit.
"""

import copy
import hashlib
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

import mose.model
from mose.checkpoint.card_facts import FACTS_NAME, CardResults, card_facts_of
from mose.checkpoint.exit_selection import ModelClass, select_exit, write_weights
from mose.checkpoint.fast_tokenizer import frame_fast_tokenizer, write_fast_tokenizer
from mose.checkpoint.model_card import write_card
from mose.checkpoint.retrieval_prompts import named_prompts
from mose.checkpoint.safetensors_file import WEIGHTS_NAME, WeightFiles
from mose.checkpoint.sentence_folder import write_sentence_transformer
from mose.errors import MoseError, first_line
from mose.files.atomic_file import atomic_folder, write_json
from mose.files.json_file import parse_json
from mose.files.records import from_plain
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.initialization import draw_parameter, initialize
from mose.model.modeling_mose import ModularStarEncoder, ModularStarEncoderForRetrieval
from mose.model.projection_heads import draw_heads
from mose.model.tasks_mose import (
    ModularStarEncoderFillMask,
    ModularStarEncoderForMaskedLM,
    ModularStarEncoderForPreTraining,
    ModularStarEncoderForSequenceClassification,
)
from mose.tokenizer import HUGGING_FACE_NAME, SENTENCEPIECE_NAME, HuggingFaceTokenizer, load_tokenizer

# What `AutoModel` needs beside the weights; they import only torch, transformers and each other.
MODEL_SOURCES = ("modeling_mose.py", "tasks_mose.py", "attention_mose.py", "rows_mose.py", "configuration_mose.py")
PRETRAINED_TASKS: dict[str, type[PreTrainedModel]] = {
    "AutoModelForMaskedLM": ModularStarEncoderForMaskedLM,
    "AutoModelForPreTraining": ModularStarEncoderForPreTraining,
}
"""Classes that also open a pre-trained folder."""
LARGEST_SIZES = {
    "vocab_size": 1 << 27,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "max_position_embeddings": 1 << 24,
}
"""Far above every model of this kind."""
FRACTIONS = ("attention_dropout", "residual_dropout", "embedding_dropout", "initializer_range", "norm_epsilon")
OTHER_FIELDS: dict[str, Any] = {
    "rope_theta": float,
    "conditional_size": int,
    "matryoshka_layers": list[int],
    "norm_after_last_layer": bool,
    "sequence_task": str,
    "initialization": str,
    "exit_layer": int | None,
    "languages": list[str] | None,
    "architectures": list[str] | None,
}
Model = TypeVar("Model", ModularStarEncoder, ModularStarEncoderForRetrieval, ModularStarEncoderForSequenceClassification)


def load_pretrained(folder: Path) -> ModularStarEncoder:
    """Open a converted pre-training checkpoint, in evaluation mode and float32.

    Raises:
        MoseError: a file is missing or broken, or a tensor is missing, unexpected or of another shape.
    """
    return _load(folder, ModularStarEncoder)


def load_retrieval(folder: Path, exit_layer: int | None = None) -> ModularStarEncoderForRetrieval:
    """Open a converted retrieval checkpoint, up to `exit_layer` if one is given; errors as in `load_pretrained`."""
    return _load(folder, ModularStarEncoderForRetrieval, exit_layer)


def load_classification(folder: Path) -> ModularStarEncoderForSequenceClassification:
    """Open a converted classification checkpoint; errors as in `load_pretrained`."""
    return _load(folder, ModularStarEncoderForSequenceClassification)


def read_model_config(folder: Path) -> ModularStarEncoderConfig:
    """Read `config.json`.

    Raises:
        MoseError: it is missing, is not JSON, or describes another kind of model.
    """
    values = read_config_fields(folder / "config.json")
    try:
        return ModularStarEncoderConfig(**values)
    except Exception as error:  # transformers checks fields of its own, and raises what its library for that raises
        raise MoseError(f"{folder / 'config.json'}: {first_line(error)}") from None


def read_config_fields(path: Path) -> dict[str, Any]:
    """The fields of a config.json of this kind of model; errors as in `read_model_config`."""
    try:
        values = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file; expected a folder written by `mose-pretrain export`") from None
    except ValueError as error:
        raise MoseError(f"{path}: not JSON: {error}") from None
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind != ModularStarEncoderConfig.model_type:
        raise MoseError(f"{path}: model_type is {kind!r}, expected {ModularStarEncoderConfig.model_type!r}")
    _check_shape(path, values)
    return values  # type: ignore[no-any-return]


def _check_shape(path: Path, values: dict[str, Any]) -> None:
    """Check every field that makes the model: a wrong one would otherwise fail deep inside torch, or build a model without end.

    Raises:
        MoseError: a field has another type, a size is 0 or beyond any model, or sizes do not fit each other.
    """
    for name, largest in LARGEST_SIZES.items():
        value = values.get(name, 1)
        if type(value) is not int or not 1 <= value <= largest:
            raise MoseError(f"{path}: {name}: {str(value)[:60]}, expected a whole number from 1 to {largest:,}")
    for name in FRACTIONS:
        value = values.get(name, 0.0)
        # The released code sets a list of one by a stray comma.
        (value,) = value if isinstance(value, list) and len(value) == 1 else (value,)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise MoseError(f"{path}: {name}: {str(value)[:60]}, expected a number from 0 to 1")
    for name, kind in OTHER_FIELDS.items():
        try:
            from_plain(kind, values[name], name) if name in values else None
        except ValueError as error:
            raise MoseError(f"{path}: {error}") from None
    exits = values.get("matryoshka_layers") or [1]
    if exits != sorted(set(exits)) or exits[0] < 1:
        raise MoseError(f"{path}: matryoshka_layers: {str(exits)[:60]}, expected layers from 1, ascending")
    heads = values.get("num_attention_heads", 16)
    if values.get("hidden_size", 1024) % heads or heads % values.get("num_key_value_heads", 4):
        raise MoseError(f"{path}: num_attention_heads: {heads}, expected a divisor of hidden_size, a multiple of the key heads")


def _load(folder: Path, model_class: type[Model], exit_layer: int | None = None) -> Model:
    config = read_model_config(folder)
    if exit_layer is not None and exit_layer not in config.computed_exit_layers:
        raise MoseError(f"exit {exit_layer}: {folder} has exits {config.computed_exit_layers}")
    config.exit_layer = config.exit_layer if exit_layer is None else exit_layer
    found = (config.architectures or [None])[0]
    if found != model_class.__name__:
        raise MoseError(f"{folder / 'config.json'}: architectures is {found}, expected {model_class.__name__}")
    with torch.device("meta"):
        model: Model = model_class(config)
    model.to_empty(device="cpu")
    _fill(model, folder)
    return model.eval()  # type: ignore[no-any-return]


@torch.no_grad()
def _fill(model: PreTrainedModel, folder: Path) -> None:
    parameters = dict(model.named_parameters())
    with WeightFiles(folder) as weights:
        deeper = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ["(?!)"]))
        check_names(weights, parameters, {name: name for name in weights.entries if not deeper.search(name)})
        for name, parameter in parameters.items():
            parameter.copy_(weights.read_finite(name))


def check_names(
    weights: WeightFiles, parameters: Mapping[str, Tensor | tuple[int, ...]], stored: Mapping[str, str] | None = None
) -> None:
    """Compare a folder's tensors with the model's parameters (tensors or shapes), by name and shape.

    `stored` gives the name in the file for each of ours, where the two differ.

    Raises:
        MoseError: a tensor is missing, not expected, or of another shape; the line names the file and the tensor.
    """
    stored = {name: name for name in weights.entries} if stored is None else stored
    for name in sorted(stored.keys() | parameters.keys()):
        if name not in stored:
            raise MoseError(f"{weights.path}: tensor {name} is missing")
        entry, path = weights.entries[stored[name]], weights.file_of(stored[name])
        if name not in parameters:
            raise MoseError(f"{path}: tensor {entry.name} is not expected")
        wanted = parameters[name]
        shape = tuple(wanted.shape) if isinstance(wanted, Tensor) else wanted
        if entry.shape != shape:
            raise MoseError(f"{path}: {entry.name} is {list(entry.shape)}, config.json makes it {list(shape)}")


def random_like(config: ModularStarEncoderConfig, seed: int) -> ModularStarEncoder:
    """A freshly initialised model of the same shape: the control that any score must be compared with."""
    model = ModularStarEncoder(config)
    initialize(model, config.initializer_range, seed, config.initialization)
    return model.eval()  # type: ignore[no-any-return]


def retrieval_from_pretrained(model: ModularStarEncoder, seed: int) -> ModularStarEncoderForRetrieval:
    """Put new, seeded projection heads on the trunk of a pre-trained model; the trunk is shared, not copied."""
    config = ModularStarEncoderConfig(**{**model.config.to_dict(), "architectures": [ModularStarEncoderForRetrieval.__name__]})
    retrieval = ModularStarEncoderForRetrieval(config)
    retrieval.starEncoder2 = model.starEncoder2
    draw_heads(retrieval.projection_heads, config.hidden_size, seed)
    return retrieval


@torch.no_grad()
def classification_from_pretrained(
    model: ModularStarEncoder, classes: int, seed: int
) -> ModularStarEncoderForSequenceClassification:
    """Put a classification head at each exit of a pre-trained model; the trunk is shared, not copied.

    The dense layer of every head starts as the pre-trained pooler, which has learnt to relate the snippets of a row; the layer
    after it is drawn from the seed.
    """
    changes = {"architectures": [ModularStarEncoderForSequenceClassification.__name__], "num_labels": classes}
    values = {name: value for name, value in model.config.to_dict().items() if name not in ("id2label", "label2id")}
    classifier = ModularStarEncoderForSequenceClassification(ModularStarEncoderConfig(**{**values, **changes}))
    classifier.starEncoder2 = model.starEncoder2
    for name, parameter in classifier.classifiers.named_parameters(prefix="classifiers"):
        _, _, layer, kind = name.split(".")
        if layer == "dense":
            parameter.copy_(getattr(model.pooler.dense, kind))
        else:
            parameter.copy_(draw_parameter(name, tuple(parameter.shape), model.config.initializer_range, seed))
    return classifier


def truncate_at(model: Model, exit_layer: int) -> Model:
    """A model of layers 1..exit_layer with that exit's heads alone; its weights are copies.

    Raises:
        MoseError: the model has no such exit.
    """
    selection = select_exit(type(model), model.config, exit_layer)
    truncated = type(model)(selection.config)
    tensors, parameters = dict(model.named_parameters()), dict(truncated.named_parameters())
    with torch.no_grad():
        for source, name in selection.sources.items():
            parameters[name].copy_(selection.take(source, tensors[source]))
    return truncated.train(model.training)  # type: ignore[no-any-return]


def write_checkpoint(
    folder: Path, model: PreTrainedModel, tokenizer_folder: Path, facts: dict[str, Any], results: CardResults | None = None
) -> None:
    """Write `model` as a converted checkpoint, with a card of `facts` and `results`; it appears whole or not at all.

    Raises:
        MoseError: `folder` already exists.
    """
    if folder.exists():
        raise MoseError(f"{folder}: already exists; a checkpoint is never overwritten")
    with atomic_folder(folder) as temporary:
        save_model(temporary, model)
        copy_tokenizer(tokenizer_folder, temporary, model.config.max_position_embeddings)
        write_json(temporary / FACTS_NAME, facts)
        write_card(temporary, model.config, type(model).__name__, card_facts_of(facts, folder.name), results)


def save_model(folder: Path, model: PreTrainedModel) -> None:
    """Write config.json, weights and the model's source files: `AutoModel` and sentence-transformers open the folder alone."""
    model_class: Any = type(model)
    describe(folder, model_class, model.config)
    write_weights([(folder / WEIGHTS_NAME, select_exit(model_class, model.config))], dict(model.named_parameters()).__getitem__)


def describe(folder: Path, model_class: ModelClass, config: ModularStarEncoderConfig) -> None:
    """Write all files but the weights and the tokenizer: config.json, source files, sentence-transformers' files."""
    described = copy.deepcopy(config)
    described.architectures = [model_class.__name__]
    # Computation is in float32 unless the caller asks for less, however few bytes the weights are stored in.
    described.dtype = torch.float32
    described.auto_map = auto_map(model_class)
    described.custom_pipelines = custom_pipelines(model_class)
    described.save_pretrained(folder)
    copy_sources(folder, model_class)
    # A classifier gives logits and no embedding.
    if model_class is not ModularStarEncoderForSequenceClassification:
        write_sentence_transformer(folder, config.hidden_size, _prompts_of(model_class, config))


def _prompts_of(model_class: ModelClass, config: ModularStarEncoderConfig) -> dict[str, str]:
    return named_prompts(config.languages or ()) if model_class is ModularStarEncoderForRetrieval else {}


def auto_map(model_class: ModelClass) -> dict[str, str]:
    """Where `AutoConfig` and `AutoModel` find the classes, in the source files of the folder."""
    module = model_class.__module__.rpartition(".")[2]
    places = {
        "AutoConfig": f"configuration_mose.{ModularStarEncoderConfig.__name__}",
        "AutoModel": f"{module}.{model_class.__name__}",
    }
    if model_class is ModularStarEncoder:
        places |= {auto: f"tasks_mose.{task.__name__}" for auto, task in PRETRAINED_TASKS.items()}
    if model_class is ModularStarEncoderForSequenceClassification:
        places["AutoModelForSequenceClassification"] = places["AutoModel"]
    return places


def custom_pipelines(model_class: ModelClass) -> dict[str, Any]:
    """The pipelines that are classes of the folder, as transformers itself writes them; none for a fine-tuned model."""
    if model_class is not ModularStarEncoder:
        return {}
    return {"fill-mask": {"impl": f"tasks_mose.{ModularStarEncoderFillMask.__name__}", "pt": ["AutoModelForMaskedLM"], "tf": []}}


def copy_sources(folder: Path, model_class: ModelClass) -> None:
    """Copy the model's source files, with which the folder opens where this project is not installed.

    transformers remembers per configuration class which model class it opened first, and opens every later folder of that
    configuration as that one; a folder's configuration is a class of its own where its file has other bytes. So the file ends
    with a line that differs between kinds of model and between versions of the code.
    """
    (source,) = mose.model.__path__
    digest = hashlib.sha256(model_class.__name__.encode())
    for name in MODEL_SOURCES:
        shutil.copyfile(Path(source) / name, folder / name)
        digest.update((folder / name).read_bytes())
    with (folder / f"{ModularStarEncoderConfig.__module__.rpartition('.')[2]}.py").open("a", encoding="utf-8") as file:
        file.write(f"# {model_class.__name__}, source files {digest.hexdigest()}\n")


def copy_tokenizer(source: Path, folder: Path, max_length: int, framed: bool = True) -> None:
    """Copy a tokenizer from its folder or file to `folder`; `AutoTokenizer` frames texts with `<sep>` and `<cls>` if `framed`.

    A sentencepiece model is also written as a fast tokenizer if they agree.

    Raises:
        MoseError: `source` holds no tokenizer, or one without the special tokens.
    """
    tokenizer = load_tokenizer(source)
    name = HUGGING_FACE_NAME if isinstance(tokenizer, HuggingFaceTokenizer) else SENTENCEPIECE_NAME
    shutil.copyfile(tokenizer.path, folder / name)
    if name == HUGGING_FACE_NAME:
        frame_fast_tokenizer(folder, max_length, framed=framed)
    elif not write_fast_tokenizer(folder, max_length, framed):
        print(f"{name}: its fast form gives other ids and is left out; AutoTokenizer will not open the folder", file=sys.stderr)
