"""Covers safetensors files read and written by hand: equal to the reference library's, and every broken file as one line."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save, save_file

from mose.checkpoint.safetensors_file import (
    DTYPES,
    Entry,
    SafetensorsReader,
    SafetensorsWriter,
    WeightFiles,
    file_size,
    header_bytes,
)
from mose.errors import MoseError

TENSORS = {"b": torch.arange(6, dtype=torch.float32).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def written(path: Path, tensors: dict[str, torch.Tensor]) -> bytes:
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with path.open("wb") as file:
        writer = SafetensorsWriter(file, entries)
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.close()
    assert path.stat().st_size == file_size(entries)
    return path.read_bytes()


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 3), max_size=3)),
        min_size=1,
        max_size=5,
    )
)
def test_any_file_is_read_by_the_library_and_its_files_by_us(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[str, list[int]]]
) -> None:
    made = {name: torch.randn(shape).to(DTYPES[dtype]) for name, (dtype, shape) in shapes.items()}
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    theirs = load(written(path, made))
    assert theirs.keys() == made.keys()
    assert all(torch.equal(theirs[name], made[name]) and theirs[name].dtype is made[name].dtype for name in made)
    path.write_bytes(save(made))
    with SafetensorsReader(path) as reader:
        assert all(torch.equal(reader.read(name), made[name]) for name in made)
        assert reader.entries.keys() == made.keys()


def test_bytes_are_the_librarys_where_the_order_is(tmp_path: Path) -> None:
    tensors = {name: torch.randn(4, 3).bfloat16() for name in ("a.weight", "b.bias", "c")}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert written(tmp_path / "ours", tensors) == (tmp_path / "theirs").read_bytes()


def test_a_value_that_is_read_survives_the_file(path: Path) -> None:
    with SafetensorsReader(path) as reader:
        tensor = reader.read("b")
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(tensor, TENSORS["b"])


def test_writing_out_of_order_or_not_all_is_an_error(tmp_path: Path) -> None:
    entries = [Entry("a", torch.float32, (2,)), Entry("b", torch.float32, (2,))]
    with (tmp_path / "x").open("wb") as file:
        with pytest.raises(ValueError, match=r"b \[2\]: expected a \[2\]"):
            SafetensorsWriter(file, entries).write("b", torch.zeros(2))
        with pytest.raises(ValueError, match=r"a \[3\]: expected a \[2\]"):
            SafetensorsWriter(file, entries).write("a", torch.zeros(3))
        with pytest.raises(ValueError, match="a: was not written"):
            SafetensorsWriter(file, entries).close()


def header(values: dict[str, object]) -> bytes:
    text = json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"\x01\x02\x03", "not a whole safetensors file"),
        (b"GGUF\x03\x00\x00\x00" + b"\0" * 100, "not a whole safetensors file: its first 8 bytes announce"),
        (b"PK\x03\x04" + b"\0" * 100, "is a PyTorch pickle, which could run code; expected safetensors"),
        (b"\x80\x02}q\x00." + b"\0" * 100, "is a PyTorch pickle, which could run code; expected safetensors"),
        ((20).to_bytes(8, "little") + b"{" * 20, "its header is not the JSON of a safetensors file"),
        ((4).to_bytes(8, "little") + b"[1 ]", "its header is not the JSON of a safetensors file"),
        (header({"a": {"dtype": "F8", "shape": [1], "data_offsets": [0, 1]}}) + b"x", "tensor a is of type F8, expected one of"),
        (
            header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}) + b"xxxx",
            r"tensor a of shape \[2\] has 4 bytes, not 8",
        ),
        (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}), r"tensor a of shape \[-1\]"),
        (
            header(
                {
                    "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                    "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                }
            )
            + b"xxxx",
            "tensor b begins at byte 0, expected 4",
        ),
        (header_bytes([Entry("a", torch.float32, (4,))]) + b"\0" * 12, "not a whole safetensors file: it has 108 bytes"),
        (header_bytes([Entry("a", torch.float32, (4,))]) + b"\0" * 20, "not a whole safetensors file: it has 116 bytes"),
    ],
)
def test_broken_files_are_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(MoseError, match=message) as caught:
        SafetensorsReader(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "x.safetensors"
    path.write_bytes(content)
    try:
        SafetensorsReader(path).close()
    except MoseError as error:
        assert str(path) in str(error)


def make_sharded(folder: Path) -> None:
    folder.mkdir()
    for number, name in enumerate(TENSORS):
        save_file({name: TENSORS[name]}, folder / f"model-{number}.safetensors")
    weight_map = {name: f"model-{number}.safetensors" for number, name in enumerate(TENSORS)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_header_that_is_as_long_as_a_pickles_first_bytes(tmp_path: Path) -> None:
    """640 = 0x0280 in little-endian order begins like a pickle of protocol 2."""
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(640)
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with SafetensorsReader(tmp_path / "x") as reader:
        assert torch.equal(reader.read("a"), torch.zeros(1))


def test_a_folder_of_several_files(tmp_path: Path) -> None:
    make_sharded(tmp_path / "x")
    with WeightFiles(tmp_path / "x") as weights:
        assert weights.entries.keys() == TENSORS.keys()
        assert torch.equal(weights.read("a"), TENSORS["a"])
        assert weights.file_of("a").name == "model-1.safetensors"


def test_a_folder_that_lacks_what_its_index_names(tmp_path: Path) -> None:
    make_sharded(tmp_path / "x")
    first = tmp_path / "x" / "model-0.safetensors"
    (tmp_path / "x" / "model-1.safetensors").rename(tmp_path / "x" / "other")
    with pytest.raises(MoseError, match=r"index\.json: names model-1\.safetensors, which is missing from the folder"):
        WeightFiles(tmp_path / "x")
    first.rename(tmp_path / "x" / "model-1.safetensors")
    save_file({"c": torch.ones(1)}, first)
    with pytest.raises(MoseError, match=r"says that model-0\.safetensors holds tensor b, which it does not"):
        WeightFiles(tmp_path / "x")
    index = tmp_path / "x" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(MoseError, match="expected a file of the same folder"):
        WeightFiles(tmp_path / "x")
    index.write_text("[]")
    with pytest.raises(MoseError, match="expected JSON with a weight_map"):
        WeightFiles(tmp_path / "x")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_folder_with_a_pickle_is_refused(name: str, tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / name)
    with pytest.raises(MoseError, match=f"{name}: is a pickle, which could run code; expected model.safetensors"):
        WeightFiles(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"model\.safetensors: no such file"):
        WeightFiles(tmp_path)


def test_the_file_is_not_needed_in_memory(path: Path) -> None:
    """Opening reads the header alone: a file whose bytes are a hole opens at once, however large."""
    entries = [Entry("a", torch.bfloat16, (1 << 17, 1 << 14)), Entry("b", torch.bfloat16, (2,))]
    with path.open("wb") as file:
        file.write(header_bytes(entries))
        file.truncate(file_size(entries))
    with SafetensorsReader(path) as reader:
        assert torch.equal(reader.read("b"), torch.zeros(2, dtype=torch.bfloat16))


def test_a_weight_file_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    make_sharded(tmp_path / "x")
    name = next((tmp_path / "x").glob("*.safetensors")).name
    (tmp_path / "x" / name).rename(tmp_path / name)
    (tmp_path / "x" / name).symlink_to(tmp_path / name)
    with pytest.raises(MoseError, match=r"index\.json: weight_map: .* is a link to .*expected a path inside"):
        WeightFiles(tmp_path / "x")
