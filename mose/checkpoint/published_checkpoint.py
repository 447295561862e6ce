"""Folders in the layout of the released checkpoints, read into ours and written back.

Facts about that layout (names, shapes, byte sizes, config fields) are read from the released repositories where they could
be seen, and else inferred from byte sizes; inferred name prefixes are therefore accepted both ways. Tensors are streamed.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch

from mose.checkpoint.card_facts import FACTS_NAME, CardFacts, with_card
from mose.checkpoint.converted_checkpoint import (
    auto_map,
    check_names,
    copy_sources,
    copy_tokenizer,
    describe,
    read_config_fields,
)
from mose.checkpoint.exit_selection import ExitSlice, ModelClass, parameter_shapes
from mose.checkpoint.model_card import write_card
from mose.checkpoint.safetensors_file import WEIGHTS_NAME, Entry, SafetensorsWriter, WeightFiles
from mose.errors import MoseError
from mose.files.atomic_file import atomic_folder, write_json
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder, ModularStarEncoderForRetrieval
from mose.tokenizer import Tokenizer, load_tokenizer

PUBLISHED_DTYPE = torch.bfloat16
"""Type of every released tensor."""
RELEASED_LAYERS = 36
"""Depth of the released models; no exit of theirs is deeper."""
BIAS_NAME = "cls.predictions.bias"
NORM_NAMES = ("starEncoder2.norm.weight", "starEncoder2.norm.bias")
SHAPE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rope_theta",
    "norm_epsilon",
    "attention_dropout",
    "residual_dropout",
    "embedding_dropout",
    "initializer_range",
    "conditional_size",
    "matryoshka_layers",
)
"""Fields of the released config.json that our configuration has under the same names."""
OWN_FIELDS = ("norm_after_last_layer", "sequence_task", "initialization")
"""Fields that released files lack, and folders in their layout that we wrote have."""
FIXED_FIELDS = {
    "hidden_act": "gelu_pytorch_tanh",
    "mlp_type": "default",
    "norm_type": "layer_norm",
    "use_bias": True,
    "sliding_window": None,
    "layer_matryoshka_loss": True,
}
"""Fields of the released config.json that have one value in this model; another one would be another model."""
_LAST_PARTS = (
    (re.compile(r"(?:.+\.)?embed_tokens\.weight"), "starEncoder2.embed_tokens.weight"),
    (
        re.compile(r"(?:.+\.)?layers\.(\d+)\.((?:self_attn|mlp|input_layernorm|post_attention_layernorm)\..+)"),
        r"starEncoder2.layers.\1.\2",
    ),
    (re.compile(r"(?:.+\.)?norm\.(weight|bias)"), r"starEncoder2.norm.\1"),
    (re.compile(r"(?:.+\.)?projection_heads\.(\d+)\.([02])\.(weight|bias)"), r"projection_heads.\1.\2.\3"),
    (re.compile(r"(?:.+\.)?pooler\.dense\.(weight|bias)"), r"pooler.dense.\1"),
    # In BERT's head the decoder's bias and the head's are one tensor, which may be stored under either name.
    (re.compile(r"(?:.+\.)?predictions\.decoder\.bias"), BIAS_NAME),
    (re.compile(r"(?:.+\.)?((?:conditional_embeddings|predictions|seq_relationship)\..+)"), r"cls.\1"),
)
# Scale of the similarities in the loss: training alone needs it.
_TEMPERATURE = re.compile(r"(?:.+\.)?(?:temperature|logit_scale)")


@dataclasses.dataclass(frozen=True)
class Published:
    """What a folder in the released layout holds, and the model of ours that it makes."""

    model_class: ModelClass
    config: ModularStarEncoderConfig
    stored_names: dict[str, str]
    """Our name -> name in the file."""
    temperatures: dict[str, float]
    """Stored name -> value of scalars that only the loss of fine-tuning uses."""


def import_published(folder: Path, output: Path, tokenizer: Path | None = None) -> Published:
    """Write a folder in the released layout as a converted checkpoint, every value and type as it was stored.

    `tokenizer` is a file or folder to take it from, where `folder` holds none.

    Raises:
        MoseError: `output` exists, or a file or tensor of `folder` is not as expected; the line names it.
    """
    if output.exists():
        raise MoseError(f"{output}: already exists; a checkpoint is never overwritten")
    with WeightFiles(folder) as weights:
        found = examine_published(folder, weights)
        _check_vocabulary(load_tokenizer(tokenizer or folder), found.config)
        with atomic_folder(output) as temporary:
            describe(temporary, found.model_class, found.config)
            _copy_tensors(weights, found, temporary / WEIGHTS_NAME)
            copy_tokenizer(tokenizer or folder, temporary, found.config.max_position_embeddings)
            facts = {"imported": folder.resolve().name, "exits": found.config.exit_layers, "temperatures": found.temperatures}
            card = CardFacts(f"{folder.resolve().name}, imported")
            write_json(temporary / FACTS_NAME, with_card(facts, card))
            write_card(temporary, found.config, found.model_class.__name__, card)
    return found


def examine_published(folder: Path, weights: WeightFiles) -> Published:
    """Find out which of the released models a folder holds, and compare every name and shape with that model's.

    Raises:
        MoseError: see `import_published`.
    """
    values = _read_config(folder / "config.json")
    temperatures = _temperatures(weights)
    stored = _our_names(weights, set(weights.entries) - set(temperatures))
    retrieval = any(name.startswith("projection_heads.") for name in stored)
    layers = {int(name.split(".")[2]) for name in stored if name.startswith("starEncoder2.layers.")}
    depth, exits = max(layers, default=-1) + 1, values["matryoshka_layers"]
    heads = sorted({int(name.split(".")[1]) for name in stored if name.startswith("projection_heads.")})
    if depth not in exits or (depth != exits[-1] and len(heads) != 1):
        held = f"{depth} layers" + (f" and {len(heads)} projection heads" if retrieval else "")
        raise MoseError(f"{weights.path}: holds {held}; expected {exits[-1]} layers, or one head and a depth of {exits[:-1]}")
    one_exit = retrieval and len(heads) == 1
    # A folder that we cut says whether its state is raw. Others list the exit alone, all exits, or those up to it, so the list
    # does not tell; but the exits that were released alone are early ones, and no norm has gone over their states.
    whole = not one_exit or depth == RELEASED_LAYERS
    normed = values.get("norm_after_last_layer", whole) and depth == exits[-1]
    values["norm_after_last_layer"] = normed
    if one_exit:
        values |= {"num_hidden_layers": depth, "matryoshka_layers": [depth]}
        stored = {name.replace(f"projection_heads.{heads[0]}.", "projection_heads.0."): old for name, old in stored.items()}
    # Early exits are taken before the final norm; whether a cut file still holds it is not known, so both are read.
    stored = {name: old for name, old in stored.items() if normed or name not in NORM_NAMES}
    model_class: ModelClass = ModularStarEncoderForRetrieval if retrieval else ModularStarEncoder
    config = ModularStarEncoderConfig(**values)
    _check_rows(folder, weights, stored, config)
    check_names(weights, parameter_shapes(model_class, config), stored)
    return Published(model_class, config, stored, temperatures)


def _temperatures(weights: WeightFiles) -> dict[str, float]:
    scalars = [name for name, entry in weights.entries.items() if _TEMPERATURE.fullmatch(name) and entry.shape in ((), (1,))]
    return {name: float(weights.read_finite(name)) for name in scalars}


def _our_names(weights: WeightFiles, wanted: Set[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for stored in weights.entries:
        if stored not in wanted:
            continue
        ours = next((pattern.sub(ours, stored) for pattern, ours in _LAST_PARTS if pattern.fullmatch(stored)), None)
        if ours is None:
            raise MoseError(f"{weights.file_of(stored)}: tensor {stored} is not expected")
        if ours in names and not (ours == BIAS_NAME and torch.equal(weights.read(names[ours]), weights.read(stored))):
            raise MoseError(f"{weights.file_of(stored)}: tensors {names[ours]} and {stored} are both {ours}, expected one")
        names[ours] = stored
    return names


def _check_rows(folder: Path, weights: WeightFiles, stored: Mapping[str, str], config: ModularStarEncoderConfig) -> None:
    name = stored.get("starEncoder2.embed_tokens.weight")
    if name is not None and weights.entries[name].shape[0] != config.vocab_size:
        rows = weights.entries[name].shape[0]
        raise MoseError(
            f"{weights.file_of(name)}: {name} has {rows} rows, {folder / 'config.json'}: vocab_size is {config.vocab_size}"
        )


def _check_vocabulary(tokenizer: Tokenizer, config: ModularStarEncoderConfig) -> None:
    if tokenizer.vocabulary_size > config.vocab_size:
        raise MoseError(
            f"{tokenizer.path}: has {tokenizer.vocabulary_size} tokens, the model's vocab_size is {config.vocab_size}"
        )


def _read_config(path: Path) -> dict[str, Any]:
    """Our configuration's fields of a released config.json."""
    values = read_config_fields(path)
    for name, wanted in FIXED_FIELDS.items():
        if values.get(name, wanted) != wanted:
            raise MoseError(f"{path}: {name} is {values[name]!r}, expected {wanted!r}")
    missing = [name for name in SHAPE_FIELDS if name not in values and name in ("vocab_size", "hidden_size", "matryoshka_layers")]
    if missing:
        raise MoseError(f"{path}: {missing[0]} is missing")
    if not values["matryoshka_layers"]:
        raise MoseError(f"{path}: matryoshka_layers: [], expected the layers of the exits")
    kept = {name: values[name] for name in (*SHAPE_FIELDS, *OWN_FIELDS) if name in values}
    if isinstance(kept.get("attention_dropout"), list):
        # The released code sets a tuple of one by a stray comma.
        kept["attention_dropout"] = kept["attention_dropout"][0]
    return kept


def _copy_tensors(weights: WeightFiles, found: Published, path: Path) -> None:
    names = sorted(found.stored_names)
    stored = [weights.entries[found.stored_names[name]] for name in names]
    entries = [Entry(name, entry.dtype, entry.shape) for name, entry in zip(names, stored, strict=True)]
    with path.open("wb") as file:
        writer = SafetensorsWriter(file, entries)
        for name in names:
            writer.write(name, weights.read_finite(found.stored_names[name]))
        writer.close()


def published_selection(selection: ExitSlice, whole: ModularStarEncoderConfig) -> ExitSlice:
    """The tensors of the released layout: an early exit's file keeps the final norm, as the predicted byte sizes have it."""
    if not whole.norm_after_last_layer or selection.config.norm_after_last_layer:
        return selection
    norm = dict.fromkeys(NORM_NAMES, (whole.hidden_size,))
    sources = dict(sorted({**selection.sources, **{name: name for name in norm}}.items()))
    return dataclasses.replace(selection, sources=sources, shapes={**selection.shapes, **norm})


def describe_published(folder: Path, selection: ExitSlice) -> None:
    """Write config.json with the released fields, and our source files, with which `AutoModel` opens the folder."""
    config = selection.config
    values = {name: getattr(config, name) for name in SHAPE_FIELDS} | FIXED_FIELDS
    values |= {"model_type": config.model_type, "architectures": [selection.model_class.__name__]}
    values |= {"layer_norm_eps": config.norm_epsilon, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
    values |= {name: getattr(config, name) for name in OWN_FIELDS} | {"auto_map": auto_map(selection.model_class)}
    values["torch_dtype"] = str(PUBLISHED_DTYPE).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")
    copy_sources(folder, selection.model_class)
