"""Covers `.npy` files: pickled objects, headers that announce more than the file holds, and headers that are no header."""

from pathlib import Path

import numpy as np
import pytest

from mose.files.npy_file import read_npy


def with_header(path: Path, header: str) -> None:
    """A file with this header and 24 bytes of values."""
    text = header.encode("latin1") + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 24)


BAD = {
    "huge": "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,)}",
    "negative": "{'descr': '<i8', 'fortran_order': False, 'shape': (-3,)}",
    "float": "{'descr': '<i8', 'fortran_order': False, 'shape': (3.0,)}",
    "infinite": "{'descr': '<i8', 'fortran_order': False, 'shape': (1e999,)}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
    "open": "{'descr': '<i8', 'fortran_order': False, 'shape': (3,",
    "code": "__import__('os').getpid()",
    "deep": "(" * 5000,
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_bad_headers_are_one_line(name: str, mapped: bool, tmp_path: Path) -> None:
    with_header(tmp_path / "x.npy", BAD[name])
    with pytest.raises(ValueError, match=".") as caught:
        read_npy(tmp_path / "x.npy", mapped)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_are_read(mapped: bool, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6).reshape(2, 3))
    assert read_npy(tmp_path / "x.npy", mapped).tolist() == [[0, 1, 2], [3, 4, 5]]
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match="announces"):
        read_npy(tmp_path / "cut.npy", mapped)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_npy(tmp_path / "x.npy")
