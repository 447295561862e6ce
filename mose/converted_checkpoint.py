"""The converted checkpoint: one Hugging Face folder that transformers and this project open alike, at any exit.

`config.json`, `model.safetensors`, the tokenizer, the model's own source files and `facts.json` (what made it); the
exporter adds `parity.json`, the largest difference to the training model at each exit.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from mose.atomic_file import atomic_folder, write_json
from mose.errors import MoseError
from mose.fast_tokenizer import write_fast_tokenizer
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.initialization import draw_parameter, initialize
from mose.model.modeling_mose import ModularStarEncoder, ModularStarEncoderForRetrieval
from mose.tokenizer import HUGGING_FACE_NAME, SENTENCEPIECE_NAME

WEIGHTS_NAME = "model.safetensors"
FACTS_NAME = "facts.json"
Model = TypeVar("Model", ModularStarEncoder, ModularStarEncoderForRetrieval)


def load_pretrained(folder: Path) -> ModularStarEncoder:
    """Open a converted pre-training checkpoint, in evaluation mode and float32.

    Raises:
        MoseError: a file is missing or broken, or a tensor is missing, unexpected or of another shape.
    """
    return _load(folder, ModularStarEncoder)


def load_retrieval(folder: Path) -> ModularStarEncoderForRetrieval:
    """Open a converted retrieval checkpoint; errors as in `load_pretrained`."""
    return _load(folder, ModularStarEncoderForRetrieval)


def read_model_config(folder: Path) -> ModularStarEncoderConfig:
    """Read `config.json`.

    Raises:
        MoseError: it is missing, is not JSON, or describes another kind of model.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file; expected a folder written by `mose-pretrain export`") from None
    except ValueError as error:
        raise MoseError(f"{path}: not JSON: {error}") from None
    if values.get("model_type") != ModularStarEncoderConfig.model_type:
        kind = values.get("model_type")
        raise MoseError(f"{path}: model_type is {kind!r}, expected {ModularStarEncoderConfig.model_type!r}")
    return ModularStarEncoderConfig(**values)


def _load(folder: Path, model_class: type[Model]) -> Model:
    config = read_model_config(folder)
    found = (config.architectures or [None])[0]
    if found != model_class.__name__:
        raise MoseError(f"{folder / 'config.json'}: architectures is {found}, expected {model_class.__name__}")
    with torch.device("meta"):
        model: Model = model_class(config)
    model.to_empty(device="cpu")
    _fill(model, folder / WEIGHTS_NAME)
    return model.eval()  # type: ignore[no-any-return]


@torch.no_grad()
def _fill(model: PreTrainedModel, path: Path) -> None:
    parameters = dict(model.named_parameters())
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names | parameters.keys()):
                if name not in names or name not in parameters:
                    raise MoseError(f"{path}: tensor {name} is {'missing' if name in parameters else 'not expected'}")
                tensor, parameter = file.get_tensor(name), parameters[name]
                if tensor.shape != parameter.shape:
                    raise MoseError(f"{path}: {name} is {list(tensor.shape)}, config.json makes it {list(parameter.shape)}")
                parameter.copy_(tensor)
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise MoseError(f"{path}: not a whole safetensors file: {error}") from None


def random_like(config: ModularStarEncoderConfig, seed: int) -> ModularStarEncoder:
    """A freshly initialised model of the same shape: the control that any score must be compared with."""
    model = ModularStarEncoder(config)
    initialize(model, config.initializer_range, seed)
    return model.eval()  # type: ignore[no-any-return]


def retrieval_from_pretrained(model: ModularStarEncoder, seed: int) -> ModularStarEncoderForRetrieval:
    """Put new, seeded projection heads on the trunk of a pre-trained model; the trunk is shared, not copied.

    The heads' matrices are drawn with variance 1 / D: at the trunk's own deviation (.018) two of them in a row would
    shrink an embedding about threefold a layer at D = 1,024 and far more at small widths.
    """
    config = ModularStarEncoderConfig(**{**model.config.to_dict(), "architectures": [ModularStarEncoderForRetrieval.__name__]})
    retrieval = ModularStarEncoderForRetrieval(config)
    retrieval.starEncoder2 = model.starEncoder2
    with torch.no_grad():
        for name, parameter in retrieval.projection_heads.named_parameters(prefix="projection_heads"):
            parameter.copy_(draw_parameter(name, tuple(parameter.shape), config.hidden_size**-0.5, seed))
    return retrieval


def truncate_at(model: Model, exit_layer: int) -> Model:
    """A model of layers 1..exit_layer with that exit's heads alone; its weights are copies.

    Raises:
        MoseError: the model has no such exit.
    """
    exits = list(model.config.matryoshka_layers)
    if exit_layer not in exits:
        raise MoseError(f"exit {exit_layer}: the model has exits {exits}")
    index = exits.index(exit_layer)
    deepest = exit_layer == model.config.num_hidden_layers
    changes = {"num_hidden_layers": exit_layer, "matryoshka_layers": [exit_layer]}
    changes["norm_after_last_layer"] = deepest and model.config.norm_after_last_layer
    truncated = type(model)(ModularStarEncoderConfig(**{**model.config.to_dict(), **changes}))
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in truncated.named_parameters():
            source = tensors[name.replace("projection_heads.0.", f"projection_heads.{index}.")]
            parameter.copy_(source[index : index + 1] if name == "cls.conditional_embeddings.weight" else source)
    return truncated.train(model.training)  # type: ignore[no-any-return]


def write_checkpoint(folder: Path, model: PreTrainedModel, tokenizer_folder: Path, facts: dict[str, Any]) -> None:
    """Write `model` as a converted checkpoint; the folder appears whole or not at all.

    Raises:
        MoseError: `folder` already exists.
    """
    if folder.exists():
        raise MoseError(f"{folder}: already exists; a checkpoint is never overwritten")
    with atomic_folder(folder) as temporary:
        save_model(temporary, model)
        copy_tokenizer(tokenizer_folder, temporary, model.config.max_position_embeddings)
        write_json(temporary / FACTS_NAME, facts)


def save_model(folder: Path, model: PreTrainedModel) -> None:
    """Write config.json, weights and the model's source files: `AutoModel` and sentence-transformers open the folder alone."""
    ModularStarEncoderConfig.register_for_auto_class()
    type(model).register_for_auto_class("AutoModel")
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
    write_sentence_transformer(folder, model.config.hidden_size)


def copy_tokenizer(source: Path, folder: Path, max_length: int) -> None:
    """Copy a tokenizer from one folder to another; a sentencepiece model is also written as a fast tokenizer if they agree.

    Raises:
        MoseError: `source` holds no tokenizer.
    """
    name = next((name for name in (SENTENCEPIECE_NAME, HUGGING_FACE_NAME) if (source / name).is_file()), None)
    if name is None:
        raise MoseError(f"{source}: holds neither {SENTENCEPIECE_NAME} nor {HUGGING_FACE_NAME}")
    shutil.copyfile(source / name, folder / name)
    if name == SENTENCEPIECE_NAME and not write_fast_tokenizer(folder, max_length):
        print(f"{name}: its fast form gives other ids and is left out; AutoTokenizer will not open the folder", file=sys.stderr)


def write_sentence_transformer(folder: Path, width: int) -> None:
    """Describe the folder to sentence-transformers: the model's last hidden state, its last token (`<cls>`), normalised."""
    steps = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{step}"}
        for i, (step, path) in enumerate(zip(steps, paths, strict=True))
    ]
    write_json(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
