"""Reads `.npy` files that anybody may have written: no pickled objects, and no allocation that the file's size does not cover."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mose.errors import first_line
from mose.files.storage import is_local


def read_npy(path: Path, mapped: bool = False) -> NDArray[Any]:
    """The array in a file; with `mapped`, a local file is mapped into memory instead of read.

    Raises:
        ValueError: it is not a whole `.npy` file of plain values; the message is one line.
        OSError: it cannot be read.
    """
    # numpy reads a header with tokenize and ast.literal_eval, which raise many kinds of errors, and allocates what it asks for.
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            size = path.stat().st_size - file.tell()
        if any(type(number) is not int or number < 0 for number in shape) or math.prod(shape) * dtype.itemsize > size:
            raise ValueError(f"its header announces {str(shape)[:60]} of {str(dtype)[:60]} in {size:,} bytes")
        if mapped and is_local(path):
            return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)  # type: ignore[no-any-return]
    except OSError:
        raise
    except Exception as error:
        raise ValueError(first_line(error)) from None
