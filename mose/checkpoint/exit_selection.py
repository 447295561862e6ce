"""Which tensors of a whole model make the model that ends at one exit, by name and without the tensors themselves."""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mose.checkpoint.safetensors_file import Entry, SafetensorsWriter
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder, ModularStarEncoderForRetrieval
from mose.model.tasks_mose import ModularStarEncoderForSequenceClassification

ModelClass = type[ModularStarEncoder] | type[ModularStarEncoderForRetrieval] | type[ModularStarEncoderForSequenceClassification]
HEADS_OF_EXITS = re.compile(r"^(projection_heads|classifiers)\.0\.")
LAYER_INDEX = "cls.conditional_embeddings.weight"


def parameter_shapes(model_class: ModelClass, config: ModularStarEncoderConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of the model and its shape; allocates nothing."""
    with torch.device("meta"):
        model = model_class(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@dataclass(frozen=True)
class ExitSlice:
    """A model cut from a whole one: its shape, and where each of its parameters comes from."""

    model_class: ModelClass
    config: ModularStarEncoderConfig
    sources: dict[str, str]
    """Name in the whole model -> name in this one, in the order of the former."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each tensor of this one."""
    exit_index: int | None = None
    """Ordinal of the exit in the whole model; None: all exits."""

    def take(self, source: str, tensor: Tensor) -> Tensor:
        """What of a tensor of the whole model this one keeps: the layer-index embedding loses the other exits' rows."""
        if self.exit_index is None or source != LAYER_INDEX:
            return tensor
        return tensor[self.exit_index : self.exit_index + 1]

    def entries(self, dtype: torch.dtype) -> list[Entry]:
        """The tensors of its file, in the order in which they are written."""
        return [Entry(name, dtype, self.shapes[name]) for name in self.sources.values()]


def select_exit(model_class: ModelClass, config: ModularStarEncoderConfig, exit_layer: int | None = None) -> ExitSlice:
    """The whole model, or layers 1..exit_layer with that exit's heads alone.

    Raises:
        MoseError: the model has no such exit.
    """
    if exit_layer is None:
        shapes = parameter_shapes(model_class, config)
        return ExitSlice(model_class, config, {name: name for name in sorted(shapes)}, shapes)
    exits = list(config.exit_layers)
    if exit_layer not in exits:
        raise MoseError(f"exit {exit_layer}: the model has exits {exits}")
    deepest = exit_layer == config.num_hidden_layers
    changes = {"num_hidden_layers": exit_layer, "matryoshka_layers": [exit_layer]}
    changes["norm_after_last_layer"] = deepest and config.norm_after_last_layer
    cut = ModularStarEncoderConfig(**{**config.to_dict(), **changes})
    index, shapes = exits.index(exit_layer), parameter_shapes(model_class, cut)
    names = {HEADS_OF_EXITS.sub(rf"\g<1>.{index}.", name): name for name in shapes}
    return ExitSlice(model_class, cut, dict(sorted(names.items())), shapes, index)


def write_weights(
    targets: Sequence[tuple[Path, ExitSlice]], read: Callable[[str], Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """Write the safetensors file of each selection, reading each tensor of the whole model once."""
    with ExitStack() as stack:
        writers = []
        for path, selection in targets:
            file = stack.enter_context(path.open("wb"))
            writers.append((selection, SafetensorsWriter(file, selection.entries(dtype))))
        for source in sorted({name for selection, _ in writers for name in selection.sources}):
            tensor = read(source)
            for selection, writer in writers:
                if source in selection.sources:
                    writer.write(selection.sources[source], selection.take(source, tensor))
        for _, writer in writers:
            writer.close()
