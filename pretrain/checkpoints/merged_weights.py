"""The float32 master weights of a DeepSpeed checkpoint of any layout, one whole parameter at a time.

Why not DeepSpeed's universal conversion: it also rewrites Adam's moments (three times the bytes) and holds whole partitions in
memory. ZeRO flattens the parameters of a tensor rank and cuts the flat vector
into one partition per data rank, so a parameter is a few consecutive ranges in a few files. Here these files are only indexed:
each is loaded without its values, which gives shapes, offsets and the place of every tensor in the file; a parameter is then
read from its ranges, and one parameter is in memory at a time. Nothing is unpickled but tensors and three plain classes of
DeepSpeed, for which stand-ins are used.
"""

import enum
import math
import pickle
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mose.checkpoint.safetensors_file import read_into
from mose.errors import MoseError, first_line
from mose.model.sharding import sharding_of

# DeepSpeed's file names (runtime/engine.py, 0.19): data rank, then tensor rank; stage 3 has a model file per data rank.
ShapeGroups = list[dict[str, tuple[int, ...]]]
OPTIMIZER_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")


class FragmentAddress:
    """Stands in for DeepSpeed's fragment_address: `numel` values from `start` of a partition."""

    numel: int
    start: int


class LossScaler:
    """Stands in for DeepSpeed's loss scaler, which is ignored."""


class ZeroStage(enum.IntEnum):
    """Stands in for DeepSpeed's ZeroStageEnum, under its names."""

    disabled = 0
    optimizer_states = 1
    gradients = 2
    weights = 3


def stage_named(kind: type, name: str) -> ZeroStage:
    """Stands in for `getattr`, by which Python 3.11.2 pickles an enumeration member; returns members of `ZeroStage` only.

    Raises:
        UnpicklingError: any other object or name is requested.
    """
    if kind is not ZeroStage or name not in ZeroStage.__members__:
        raise pickle.UnpicklingError(f"getattr of {name!r}, expected a ZeRO stage")
    return ZeroStage[name]


STAND_INS: list[Any] = [
    (FragmentAddress, "deepspeed.utils.tensor_fragment.fragment_address"),
    (LossScaler, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (ZeroStage, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (stage_named, "builtins.getattr"),
]


_PARAMETER = re.compile(r"\w+(?:\.\w+)*")


@dataclass(frozen=True)
class Piece:
    """Consecutive float32 values of a parameter in one file: a data rank's part of a tensor rank's slice."""

    path: Path
    byte_offset: int
    num_values: int


class MergedWeights:
    """The whole parameters of a checkpoint's `state` folder."""

    def __init__(self, folder: Path):
        """Index the optimiser files of all ranks; no weights are read.

        Raises:
            MoseError: a rank's file is missing or damaged, or the files have an unknown layout.
        """
        self._folder = folder
        # Per parameter and tensor rank: its pieces in the order of the data ranks, and the shape of its slice.
        self._pieces: dict[str, dict[int, list[Piece]]] = defaultdict(lambda: defaultdict(list))
        self._shapes: dict[str, dict[int, tuple[int, ...]]] = defaultdict(dict)
        files = self._files()
        groups = {tensor_rank: self._shape_groups(tensor_rank) for tensor_rank in sorted({place[0] for place in files})}
        for tensor_rank, shape_groups in groups.items():
            for group in shape_groups:
                for name, shape in group.items():
                    self._shapes[name][tensor_rank] = shape
        data_ranks = len(files) // len(groups)
        for (tensor_rank, data_rank), path in sorted(files.items()):
            for name, piece in _pieces_of(path, groups[tensor_rank], data_rank, data_ranks):
                if not _PARAMETER.fullmatch(name):
                    raise MoseError(f"{path}: parameter {name!r}: expected a dotted name of a parameter")
                self._pieces[name][tensor_rank].append(piece)

    @property
    def names(self) -> set[str]:
        """Every parameter that the checkpoint holds."""
        return set(self._shapes)

    def read(self, name: str) -> Tensor:
        """One whole parameter, float32 on the CPU; vocabulary rows include their padding.

        Raises:
            MoseError: there is no such parameter, a part of it is missing, or replicated copies differ.
        """
        if name not in self._shapes:
            raise MoseError(f"{self._folder}: holds no parameter {name}")
        slices = [self._slice(name, tensor_rank) for tensor_rank in sorted(self._shapes[name])]
        dimension = sharding_of(name).dimension
        if dimension is not None:
            return torch.cat(slices, dim=dimension) if len(slices) > 1 else slices[0]
        for tensor_rank, other in enumerate(slices[1:], start=1):
            if not torch.equal(slices[0], other):
                raise MoseError(f"{self._folder}: {name}: copies of tensor ranks 0 and {tensor_rank} differ, expected equal ones")
        return slices[0]

    def _slice(self, name: str, tensor_rank: int) -> Tensor:
        shape, pieces = self._shapes[name][tensor_rank], self._pieces[name][tensor_rank]
        values, wanted = torch.empty(math.prod(shape), dtype=torch.float32), math.prod(shape)
        if sum(piece.num_values for piece in pieces) != wanted:
            found = sum(piece.num_values for piece in pieces)
            raise MoseError(f"{self._folder}: {name}: {found:,} values of tensor rank {tensor_rank}, expected {wanted:,}")
        start = 0
        for piece in pieces:
            with piece.path.open("rb") as file:
                file.seek(piece.byte_offset)
                if not read_into(file, values[start : start + piece.num_values]):
                    raise MoseError(f"{piece.path}: ends inside {name}")
            start += piece.num_values
        return values.reshape(shape)

    def _files(self) -> dict[tuple[int, int], Path]:
        """Optimiser files by (tensor rank, data rank); the grid is checked to be complete."""
        found = {}
        for path in self._folder.glob("*_optim_states.pt"):
            if match := OPTIMIZER_FILE.fullmatch(path.name):
                found[int(match[2]), int(match[1])] = path
        if not found:
            raise MoseError(f"{self._folder}: holds no optimiser states; expected those of ZeRO 1, 2 or 3")
        for tensor_rank in range(max(place[0] for place in found) + 1):
            for data_rank in range(max(place[1] for place in found) + 1):
                if (tensor_rank, data_rank) not in found:
                    ranks = f"data rank {data_rank}, tensor rank {tensor_rank}"
                    raise MoseError(f"{self._folder}: the optimiser states of {ranks} are missing")
        return found

    def _shape_groups(self, tensor_rank: int) -> ShapeGroups:
        """Shapes of a tensor rank's slices by name, per optimiser group; stage 3 writes them once per data rank."""
        names = (f"mp_rank_{tensor_rank:02d}_model_states.pt", f"zero_pp_rank_0_mp_rank_{tensor_rank:02d}_model_states.pt")
        path = next((self._folder / name for name in names if (self._folder / name).is_file()), self._folder / names[0])
        groups = _load_without_values(path).get("param_shapes")
        if not groups:
            raise MoseError(f"{path}: holds no shapes of parameters; expected a checkpoint of ZeRO 1, 2 or 3")
        return [{name: tuple(shape) for name, shape in group.items()} for group in groups]


def _pieces_of(path: Path, groups: ShapeGroups, data_rank: int, data_ranks: int) -> Iterator[tuple[str, Piece]]:
    state = _load_without_values(path)["optimizer_state_dict"]
    if "param_slice_mappings" in state:
        for flat, fragments in zip(state["single_partition_of_fp32_groups"], state["param_slice_mappings"], strict=True):
            for name, fragment in fragments.items():
                yield name, _piece(path, flat, fragment.start, fragment.numel)
    elif "fp32_flat_groups" in state:
        # Stage 3 cuts each parameter into equal parts, the last ones padded, and concatenates them in the order of the shapes.
        for flat, group in zip(state["fp32_flat_groups"], groups, strict=True):
            start = 0
            for name, shape in group.items():
                part = -(-math.prod(shape) // data_ranks)
                yield name, _piece(path, flat, start, max(0, min(part, math.prod(shape) - data_rank * part)))
                start += part
    else:
        raise MoseError(f"{path}: holds no float32 master weights; expected optimiser states of ZeRO 1, 2 or 3")


def _piece(path: Path, flat: Tensor, start: int, num_values: int) -> Piece:
    if flat.dtype != torch.float32:
        raise MoseError(f"{path}: master weights are {flat.dtype}, expected torch.float32")
    storage: Any = flat.untyped_storage()
    return Piece(path, storage._checkpoint_offset + (int(flat.storage_offset()) + start) * flat.itemsize, num_values)


def _load_without_values(path: Path) -> dict[str, Any]:
    """The contents of a torch file with tensors on the meta device: without values, but with their offsets in the file."""
    try:
        with torch.serialization.safe_globals(STAND_INS):
            values = torch.load(path, map_location="meta", weights_only=True)
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file; expected a part of a complete checkpoint") from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise MoseError(f"{path}: not a whole DeepSpeed file: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise MoseError(f"{path}: not a DeepSpeed file: expected a dictionary")
    return values
