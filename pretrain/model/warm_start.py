"""Start a run, in any layout, from the weights of a converted checkpoint; and write one with seeded initial weights."""

from pathlib import Path

import torch
from torch import nn

from mose.checkpoint.converted_checkpoint import random_like, read_model_config, write_checkpoint
from mose.checkpoint.safetensors_file import WeightFiles
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.model_config import ModelConfig
from mose.model.modeling_mose import ModularStarEncoder
from mose.model.sharding import Sharding, sharding_of
from mose.tokenizer import load_tokenizer
from pretrain.config.run import DataConfig, PretrainConfig
from pretrain.model.training_model import cut
from pretrain.parallel.context import ParallelContext
from pretrain.storage.run_data import named_sources

# Field of the run's model section -> field of config.json. The others (dropout, row length, initial deviation) change neither a
# shape nor the meaning of the weights.
MEANT_FIELDS = {
    "vocabulary_size": "vocab_size",
    "width": "hidden_size",
    "feed_forward_width": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "exit_layers": "matryoshka_layers",
    "layer_index_width": "conditional_size",
    "norm_after_last_layer": "norm_after_last_layer",
    "rope_theta": "rope_theta",
    "norm_epsilon": "norm_epsilon",
}


@torch.no_grad()
def fill_from_converted(model: nn.Module, folder: Path, config: PretrainConfig, context: ParallelContext) -> None:
    """Copy this rank's slices of a converted checkpoint's weights into `model`; one whole tensor is in memory at a time.

    Raises:
        MoseError: the checkpoint differs in shape, vocabulary, tokenizer or exits, or a tensor is missing or not expected; the
            message names the first one.
    """
    check_fits(folder, config.model)
    check_tokenizer(folder, first_dataset(config.data))
    parameters = dict(model.named_parameters())
    with WeightFiles(folder) as weights:
        entries = weights.entries
        for name in sorted(entries.keys() ^ parameters.keys()):
            fault = "missing" if name in parameters else "not expected"
            raise MoseError(f"start_from: {weights.path}: tensor {name} is {fault}")
        for name, parameter in parameters.items():
            kind = sharding_of(name)
            shape = _whole_shape(parameter, kind, config.model, context)
            if entries[name].shape != shape:
                found = list(entries[name].shape)
                raise MoseError(f"start_from: {weights.file_of(name)}: {name} is {found}, the run's model has {list(shape)}")
            full = weights.read_finite(name)
            parameter.copy_(cut(full, kind, config.model.padded_vocabulary_size, context))


def _whole_shape(parameter: nn.Parameter, kind: Sharding, model: ModelConfig, context: ParallelContext) -> tuple[int, ...]:
    shape = list(parameter.shape)
    if kind is Sharding.VOCABULARY:
        shape[0] = model.vocabulary_size
    elif kind.dimension is not None:
        shape[kind.dimension] *= context.layout.tensor_ranks
    return tuple(shape)


def check_fits(folder: Path, model: ModelConfig) -> None:
    """Compare a converted checkpoint's config.json with a run's model section.

    Raises:
        MoseError: a field differs that decides a shape or the meaning of the weights, or it is no pre-training checkpoint.
    """
    saved, wanted = read_model_config(folder), model.hugging_face()
    path = folder / "config.json"
    found = (saved.architectures or [None])[0]
    if found != ModularStarEncoder.__name__:
        raise MoseError(f"start_from: {path}: architectures is {found}, expected {ModularStarEncoder.__name__}")
    for ours, theirs in MEANT_FIELDS.items():
        value = getattr(saved, theirs)
        if (list(value) if isinstance(value, tuple | list) else value) != wanted[theirs]:
            raise MoseError(f"start_from: {path}: {theirs} is {value}, the run's model.{ours} is {getattr(model, ours)}")


def check_tokenizer(folder: Path, dataset: Path) -> None:
    """Compare the tokenizers of a converted checkpoint and of the data set.

    Raises:
        MoseError: they differ, so that the weights' vocabulary rows would stand for other tokens.
    """
    saved, wanted = load_tokenizer(folder).fingerprint(), load_tokenizer(dataset).fingerprint()
    if saved != wanted:
        raise MoseError(f"start_from: {folder}: its tokenizer is {saved}, the data set {dataset} was packed with {wanted}")


def first_dataset(data: DataConfig) -> Path:
    """The first data set of a run; its tokenizer is that of all, since the data sets of a mixture share one."""
    return named_sources(data)[0][1]


def write_initial_weights(config: PretrainConfig, output: Path) -> ModularStarEncoder:
    """Write the initial weights of `config` as a converted checkpoint, and return the model.

    Raises:
        MoseError: `output` exists, or the config names no data set, whose tokenizer goes into the folder.
    """
    if output.exists():
        raise MoseError(f"{output}: already exists; a checkpoint is never overwritten")
    dataset = first_dataset(config.data)
    config = config.resolve(load_tokenizer(dataset).vocabulary_size)
    model = random_like(ModularStarEncoderConfig(**config.model.hugging_face()), config.seed)
    write_checkpoint(output, model, dataset, {"initial_weights_of_seed": config.seed})
    return model
