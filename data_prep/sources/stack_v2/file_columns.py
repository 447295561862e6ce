"""The columns of files in one form, whatever types the engine that wrote a parquet file chose for them.

Spark, pandas, polars, duckdb and `datasets` store the same table as lists of structs or structs of lists, text as string, binary
or dictionary, flags as booleans or integers.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.sources.stack_v2.parquet_file import CONTENT

_SHA1_BYTES = 20
_SHA1 = re.compile(r"[0-9a-f]{40}")
_SOFTWARE_HERITAGE = "swh:1:cnt:"
_TRUE, _FALSE = ("true", "1", "t", "yes"), ("false", "0", "f", "no", "")


def normal_files(files: Any) -> Any:
    """A column `files` (array or chunked array) as a large list of structs: plain values, content as bytes, no null structs.

    Raises:
        ValueError: it is neither a list of structs nor a struct of lists of equal lengths.
    """
    if isinstance(files, pa.ChunkedArray):
        chunks = [normal_files(chunk) for chunk in files.chunks]
        return pa.chunked_array(chunks) if chunks else files
    files = plain(files)
    lengths, columns = _columns_of_structs(files) if pa.types.is_struct(files.type) else _columns_of_list(files)
    # Bytes, because invalid UTF-8 in a string column would raise for the whole list; 64-bit offsets, because a row group's
    # contents may exceed 2 GiB.
    columns = {name: as_bytes(values) if name == CONTENT else plain(values) for name, values in columns.items()}
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, pa.StructArray.from_arrays(list(columns.values()), names=list(columns)))


def plain(array: Any) -> Any:
    """An array without dictionary encoding and extension type."""
    while isinstance(array, pa.ExtensionArray | pa.DictionaryArray):
        array = array.storage if isinstance(array, pa.ExtensionArray) else array.dictionary_decode()
    return array


def as_bytes(array: Any) -> Any:
    """Text or binary as 64-bit binary; raises ValueError for other types."""
    array = plain(array)
    kind = array.type
    if not (_is_text(kind) or pa.types.is_null(kind)):
        raise ValueError(f"{CONTENT}: is {kind}, expected text or binary")
    if pa.types.is_fixed_size_binary(kind):
        array = array.cast(pa.binary())
    if kind in (pa.string_view(), pa.binary_view()):
        array = array.cast(pa.large_string() if kind == pa.string_view() else pa.large_binary())
    return array.cast(pa.large_binary())


def texts(array: Any) -> list[str | None]:
    """Text, binary, whole numbers or nulls as texts; bytes that are not UTF-8 become U+FFFD.

    Raises:
        ValueError: the array has another type.
    """
    array = plain(array)
    if pa.types.is_integer(array.type):
        return [None if value is None else str(value) for value in array.to_pylist()]
    if not (_is_text(array.type) or pa.types.is_null(array.type)):
        raise ValueError(f"is {array.type}, expected text")
    try:
        values = array.to_pylist()
    except UnicodeDecodeError:
        values = as_bytes(array).to_pylist()
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]


def blob_ids(array: Any) -> list[str | None]:
    """Blob ids as 40 lower-case digits: from 20 bytes, or from digits of either case with or without `swh:1:cnt:` before them.

    What is no SHA-1 stays as it is, as text. Raises ValueError if the array is neither text, binary nor whole numbers.
    """
    array = plain(array)
    if not pa.types.is_integer(array.type) and not pa.types.is_null(array.type):
        try:
            values = array.to_pylist()
        except UnicodeDecodeError:
            values = as_bytes(array).to_pylist()
        if any(isinstance(value, bytes) and len(value) == _SHA1_BYTES for value in values):
            array = pa.array([_hexadecimal(value) for value in values], pa.large_binary())
    return [text if text is None or _SHA1.fullmatch(text) else _plain_id(text) for text in texts(array)]


def is_sha1(text: str | None) -> bool:
    """Whether a text is a SHA-1 as `blob_ids` writes it."""
    return text is not None and _SHA1.fullmatch(text) is not None


def _hexadecimal(value: str | bytes | None) -> bytes | None:
    if isinstance(value, str):
        return value.encode()
    return value.hex().encode() if value is not None and len(value) == _SHA1_BYTES else value


def _plain_id(text: str) -> str:
    bare = text.strip().lower().removeprefix(_SOFTWARE_HERITAGE)
    return bare if _SHA1.fullmatch(bare) else text


def list_lengths(array: Any) -> Any:
    """Number of values of each list, null for a null list."""
    # Imported late: its documentation of 300 functions is written at import, and every command imports the sources.
    import pyarrow.compute as pc

    return pc.list_value_length(array)


def lists_of_texts(array: Any) -> list[tuple[str, ...]]:
    """Lists of texts, or single texts, as tuples without nulls; raises ValueError for another type."""
    array = plain(array)
    if not _is_list(array.type):
        written = texts(array)
        if a_list := next((text for text in written if text and text.startswith("[")), None):
            raise ValueError(f"is the text {a_list[:40]!r}, expected a list of texts")
        return [(text,) if text else () for text in written]
    lengths = list_lengths(array).fill_null(0).to_pylist()
    values = iter(texts(array.flatten()))
    return [tuple(text for text in [next(values) for _ in range(length)] if text) for length in lengths]


def flags(array: Any) -> list[bool]:
    """Booleans, 0 and 1, or their texts as booleans, null and NaN as False; raises ValueError for anything else."""
    array = plain(array)
    if pa.types.is_boolean(array.type) or pa.types.is_null(array.type):
        return [bool(value) for value in array.to_pylist()]
    if pa.types.is_floating(array.type):
        # pandas makes floats of a column of whole numbers with nulls, and NaN of these.
        values = [0.0 if value is None or math.isnan(value) else value for value in array.to_pylist()]
        if wrong := next((value for value in values if value not in (0, 1)), None):
            raise ValueError(f"is {wrong}, expected true or false")
        return list(map(bool, values))
    found = [(text or "").strip().lower() for text in texts(array)]
    if wrong := next((text for text in found if text not in (*_TRUE, *_FALSE)), None):
        raise ValueError(f"is {wrong[:40]!r}, expected true or false")
    return [text in _TRUE for text in found]


def whole_numbers(array: Any) -> Any:
    """Integers, decimals or floats as int64, null, NaN and negative numbers as 0; raises ValueError for another type."""
    array = plain(array)
    kind = array.type
    if pa.types.is_null(kind):
        return np.zeros(len(array), np.int64)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise ValueError(f"is {kind}, expected int64")
    if pa.types.is_integer(kind) and kind != pa.uint64():
        numbers = array.fill_null(0).cast(pa.int64()).to_numpy(zero_copy_only=False)
        return np.maximum(numbers, 0)
    floats = np.nan_to_num(array.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False))
    return np.clip(floats, 0, 1 << 62).astype(np.int64)


def read_column(name: str, read: Callable[[Any], Any], array: Any) -> Any:
    """`read(array)`; raises ValueError with the column's name in front."""
    try:
        return read(array)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _is_text(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    is_view = kind in (pa.string_view(), pa.binary_view())
    return is_view or bool(pa.types.is_fixed_size_binary(kind)) or any(check(kind) for check in checks)


def _is_list(kind: pa.DataType) -> bool:
    return any(check(kind) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _columns_of_list(files: Any) -> tuple[Any, dict[str, Any]]:
    if not _is_list(files.type) or not pa.types.is_struct(files.type.value_type):
        raise ValueError(f"files: is {files.type!s:.80}, expected a list of structs")
    lengths = list_lengths(files).fill_null(0).to_numpy(zero_copy_only=False)
    structs = files.flatten()
    # `flatten` of structs, unlike `field`, makes the values of a null struct null.
    return lengths, dict(zip((field.name for field in structs.type), structs.flatten(), strict=True))


def _columns_of_structs(files: Any) -> tuple[Any, dict[str, Any]]:
    lengths, columns = None, {}
    for field, lists in zip(files.type, files.flatten(), strict=True):
        array = plain(lists)
        if not _is_list(array.type):
            raise ValueError(f"files.{field.name}: is {array.type!s:.80}, expected a list, as files is a struct")
        found = list_lengths(array).fill_null(0).to_numpy(zero_copy_only=False)
        if lengths is not None and not np.array_equal(lengths, found):
            row = int(np.flatnonzero(lengths != found)[0])
            raise ValueError(f"files.{field.name}: has {found[row]} values in a row of {lengths[row]} files")
        lengths, columns[field.name] = found, array.flatten()
    if lengths is None:
        raise ValueError("files: has no column, expected a list of structs")
    return lengths, columns
