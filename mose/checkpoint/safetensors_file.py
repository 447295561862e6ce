"""safetensors files one tensor at a time: read and written with no more than that tensor in memory, and checked before use.

The format: 8 bytes little-endian length of a JSON header, the header (name -> dtype, shape, data_offsets), then the bytes.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from mose.errors import MoseError
from mose.files.json_file import parse_json
from mose.files.safe_path import path_inside

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# Only what checkpoints of this model hold; another type in a header is refused by name.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "I64": torch.int64}
_LENGTH_BYTES = 8
# The limit of the reference implementation (safetensors 0.8, MAX_HEADER_SIZE).
_LARGEST_HEADER = 100_000_000
_ZIP_MAGIC, _PICKLE_MAGIC = b"PK\x03\x04", b"\x80"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Entry:
    """One tensor of a header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def header_bytes(entries: Sequence[Entry]) -> bytes:
    """Length and header of a file that holds `entries` in this order, padded with spaces to a multiple of 8 bytes."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        end = start + entry.num_bytes
        header[entry.name] = {"dtype": names[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def file_size(entries: Sequence[Entry]) -> int:
    """Bytes of the whole file, from shapes alone."""
    return len(header_bytes(entries)) + sum(entry.num_bytes for entry in entries)


class SafetensorsWriter:
    """Writes a file's tensors in the order of its entries; each is written and forgotten."""

    def __init__(self, file: IO[bytes], entries: Sequence[Entry]):
        """Write the header to `file`, which is at its start."""
        self._file = file
        self._left = list(reversed(entries))
        file.write(header_bytes(entries))

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor, converted to the type that its entry says.

        Raises:
            ValueError: it is not the next one, or has another shape.
        """
        entry = self._left.pop()
        if (name, tuple(tensor.shape)) != (entry.name, entry.shape):
            raise ValueError(f"{name} {list(tensor.shape)}: expected {entry.name} {list(entry.shape)}")
        self._file.write(_bytes_of(tensor.detach().to("cpu", entry.dtype).contiguous()))

    def close(self) -> None:
        """Check that every entry was written.

        Raises:
            ValueError: a tensor was not.
        """
        if self._left:
            raise ValueError(f"{self._left[-1].name}: was not written")


def _bytes_of(tensor: Tensor) -> memoryview:
    values: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)


def read_into(file: IO[bytes], values: Tensor) -> bool:
    """Fill a contiguous CPU tensor with the next bytes of `file`; returns whether there were enough."""
    buffer = _bytes_of(values)
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True


class SafetensorsReader:
    """One file, its header checked; `read` gives one tensor in memory of its own."""

    def __init__(self, path: Path):
        """Open `path` and check that its header describes exactly the bytes that follow.

        Raises:
            MoseError: no such file, a pickle, or not a whole safetensors file.
        """
        self.path = path
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise MoseError(f"{path}: no such file") from None
        try:
            self._data_start, self._places = self._read_header()
        except BaseException:
            self._file.close()
            raise

    @property
    def entries(self) -> dict[str, Entry]:
        """Tensors by name, in the order of the header."""
        return {name: entry for name, (entry, _) in self._places.items()}

    def read(self, name: str) -> Tensor:
        """The whole tensor called `name`, on the CPU.

        Raises:
            MoseError: the file has become shorter since it was opened.
        """
        entry, start = self._places[name]
        values = torch.empty(entry.shape, dtype=entry.dtype)
        self._file.seek(self._data_start + start)
        if not read_into(self._file, values):
            raise MoseError(f"{self.path}: ends inside tensor {name}")
        return values

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "SafetensorsReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read_header(self) -> tuple[int, dict[str, tuple[Entry, int]]]:
        start, size = self._file.read(_LENGTH_BYTES), self.path.stat().st_size
        length = int.from_bytes(start, "little")
        if len(start) < _LENGTH_BYTES or not 2 <= length <= min(_LARGEST_HEADER, size - _LENGTH_BYTES):
            # Looked at only now: a header may well be 640 bytes long, which begins like a pickle of protocol 2.
            if start.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
                raise MoseError(f"{self.path}: is a PyTorch pickle, which could run code; expected safetensors")
            raise self._broken(f"its first 8 bytes announce a header of {length:,} bytes in a file of {size:,}")
        text = self._file.read(length)
        try:
            header = parse_json(text)
            header.pop("__metadata__", None)
            places = {name: self._entry(name, value) for name, value in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise self._broken("its header is not the JSON of a safetensors file") from None
        end = 0
        for name, (entry, begin) in sorted(places.items(), key=lambda item: (item[1][1], item[1][0].num_bytes)):
            if begin != end:
                raise self._broken(f"tensor {name} begins at byte {begin:,}, expected {end:,}")
            end += entry.num_bytes
        if end != size - _LENGTH_BYTES - length:
            raise self._broken(f"it has {size:,} bytes, its header says {end + _LENGTH_BYTES + length:,}")
        return _LENGTH_BYTES + length, places

    def _entry(self, name: str, value: dict[str, Any]) -> tuple[Entry, int]:
        if value["dtype"] not in DTYPES:
            raise MoseError(f"{self.path}: tensor {name} is of type {value['dtype']}, expected one of {', '.join(DTYPES)}")
        # 2.0, true and Infinity are no sizes; Python would take the first two for 2 and 1.
        if any(type(number) is not int or not 0 <= number < 1 << 63 for number in (*value["shape"], *value["data_offsets"])):
            shown = f"{str(value['shape'])[:60]} at {str(value['data_offsets'])[:60]}"
            raise self._broken(f"tensor {name} of shape {shown}: expected whole numbers from 0 to 2^63 - 1")
        entry = Entry(name, DTYPES[value["dtype"]], tuple(value["shape"]))
        start, end = value["data_offsets"]
        if end - start != entry.num_bytes:
            raise self._broken(f"tensor {name} of shape {list(entry.shape)} has {end - start:,} bytes, not {entry.num_bytes:,}")
        return entry, start

    def _broken(self, reason: str) -> MoseError:
        return MoseError(f"{self.path}: not a whole safetensors file: {reason}")


class WeightFiles:
    """Every tensor of a folder: one `model.safetensors`, or the files that `model.safetensors.index.json` names."""

    def __init__(self, folder: Path):
        """Open the folder's files and check them.

        Raises:
            MoseError: there is none, only pickles, a file of the index is missing, or the index and the files disagree.
        """
        self.path, self._readers = folder / WEIGHTS_NAME, {}
        index = folder / INDEX_NAME
        if self.path.is_file() or not index.is_file():
            _expect_safetensors(folder, self.path)
            self._readers = {self.path.name: SafetensorsReader(self.path)}
        else:
            self.path = index
            for name in _files_of_index(index):
                if not (folder / name).is_file():
                    self.close()
                    raise MoseError(f"{index}: names {name}, which is missing from the folder")
                self._readers[name] = SafetensorsReader(folder / name)
        self._owners = {name: reader for reader in self._readers.values() for name in reader.entries}
        if self.path == index:
            self._compare_with_index(index)

    @property
    def entries(self) -> dict[str, Entry]:
        """Tensors of all files by name."""
        return {name: entry for reader in self._readers.values() for name, entry in reader.entries.items()}

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._owners[name].path

    def read(self, name: str) -> Tensor:
        """One whole tensor, on the CPU."""
        return self._owners[name].read(name)

    def read_finite(self, name: str) -> Tensor:
        """One whole tensor, on the CPU, of weights that a model will be made of.

        Raises:
            MoseError: a value is NaN or infinite. It would make every output NaN, far from the file that it came from.
        """
        values = self.read(name)
        finite = torch.isfinite(values)
        if not finite.all():
            count, first = int((~finite).sum()), int((~finite).flatten().int().argmax())
            place = f"the first is {float(values.flatten()[first])} at {first:,}"
            raise MoseError(f"{self.file_of(name)}: tensor {name} has {count:,} values that are not finite ({place})")
        return values

    def close(self) -> None:
        """Close all files."""
        for reader in self._readers.values():
            reader.close()

    def __enter__(self) -> "WeightFiles":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _compare_with_index(self, index: Path) -> None:
        for name, file in _weight_map(index).items():
            if name not in self._readers[file].entries:
                self.close()
                raise MoseError(f"{index}: says that {file} holds tensor {name}, which it does not")


def _expect_safetensors(folder: Path, path: Path) -> None:
    if path.is_file():
        return
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise MoseError(f"{folder / pickles[0]}: is a pickle, which could run code; expected {WEIGHTS_NAME}")
    raise MoseError(f"{path}: no such file")


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        names = parse_json(index.read_bytes())["weight_map"]
        return {str(tensor): str(file) for tensor, file in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MoseError(f"{index}: expected JSON with a weight_map from tensor to file") from None


def _files_of_index(index: Path) -> Iterable[str]:
    files = sorted(set(_weight_map(index).values()))
    for name in files:
        if Path(name).name != name:
            raise MoseError(f"{index}: names {name!r}, expected a file of the same folder")
        path_inside(index.parent, name, f"{index}: weight_map")
    return files
