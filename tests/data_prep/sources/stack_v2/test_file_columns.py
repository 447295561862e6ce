"""Parquet as other engines write it: any mutation of schema and values is read, or named in one line."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.sources.registry import SourcesConfig, list_repositories, read_repository
from data_prep.sources.stack_v2.file_columns import blob_ids, flags, lists_of_texts, texts, whole_numbers
from mose.errors import MoseError

TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(("blob_id", "path", "language", "license_type", "src_encoding", "content"), pa.string()),
    "detected_licenses": pa.list_(pa.string()),
    **dict.fromkeys(("is_vendor", "is_generated"), pa.bool_()),
    "length_bytes": pa.int64(),
}
OTHER_TYPES = {
    pa.string(): (pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string()), pa.null(), pa.int8()),
    pa.list_(pa.string()): (
        pa.large_list(pa.string()),
        pa.list_(pa.large_string()),
        pa.string(),
        pa.null(),
        pa.list_(pa.int64()),
    ),
    pa.bool_(): (pa.int8(), pa.string(), pa.null(), pa.float64(), pa.struct([("a", pa.int8())])),
    pa.int64(): (pa.int32(), pa.uint64(), pa.float32(), pa.decimal128(20, 0), pa.null(), pa.string(), pa.timestamp("us")),
}


def a_file(number: int) -> dict[str, Any]:
    text = f"x = {number}\n" * 5
    facts = {"blob_id": hashlib.sha1(text.encode()).hexdigest(), "path": f"/{number}.py", "language": "Python"}
    more = {"license_type": "permissive", "src_encoding": "UTF-8", "content": text, "detected_licenses": ["MIT"]}
    return {**facts, **more, "is_vendor": False, "is_generated": False, "length_bytes": len(text)}


def array_of(values: list[Any], kind: pa.DataType, wanted: pa.DataType) -> Any:
    """The values as `wanted`, or nulls where they cannot be converted."""
    plain = pa.array(values, kind)
    try:
        return plain.dictionary_encode() if pa.types.is_dictionary(wanted) else plain.cast(wanted)
    except pa.ArrowException:
        return pa.nulls(len(values), wanted)


def nested(columns: dict[str, Any], lengths: list[int], shape: str) -> Any:
    offsets = pa.array([sum(lengths[:i]) for i in range(len(lengths) + 1)], pa.int32())
    if shape == "struct_of_lists":
        lists = [pa.ListArray.from_arrays(offsets, values) for values in columns.values()]
        return pa.StructArray.from_arrays(lists, names=list(columns))
    structs = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    if shape == "large_list":
        return pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), structs)
    return pa.ListArray.from_arrays(offsets, structs)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_is_read_or_named_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    files = [a_file(number) for number in range(sum(lengths))]
    columns: dict[str, Any] = {}
    for name, kind in TYPES.items():
        values = [None if data.draw(st.integers(0, 9)) == 0 else file[name] for file in files]
        columns[name] = array_of(values, kind, data.draw(st.sampled_from((kind, kind, kind, *OTHER_TYPES[kind]))))
    columns["extra"] = pa.array(range(len(files)), pa.int32())
    for name in data.draw(st.sets(st.sampled_from(sorted(columns)), max_size=1)):
        del columns[name]
    shape = data.draw(st.sampled_from(("list", "list", "large_list", "struct_of_lists")))
    names = pa.array([f"o/{row}" for row in range(len(lengths))])
    name_type = data.draw(st.sampled_from((pa.string(), pa.large_string(), pa.binary(), pa.null())))
    table = pa.table({"repo_name": names.cast(name_type) if name_type != pa.null() else pa.nulls(len(names)), "more": names})
    path = tmp_path / "a.parquet"
    try:
        pq.write_table(table.append_column("files", nested(columns, lengths, shape)), path, row_group_size=2)
    except pa.ArrowNotImplementedError:
        return  # No file: this writer cannot store the combination.
    config = SourcesConfig(stack_v2=(str(path),))
    try:
        refs = list_repositories(config)
    except MoseError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    for ref in refs:
        try:
            found = list(read_repository(ref, config))
        except MoseError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            # A type that no row has otherwise is one of the whole column.
            assert "row " in str(error) or "length_bytes: is " in str(error)
            continue
        assert len(found) == lengths[ref.index]
        if columns["content"].null_count == 0 and pa.types.is_string(columns["content"].type):
            assert sorted(file.content for file in found) == sorted(
                file["content"].encode() for file in files[sum(lengths[: ref.index]) :][: lengths[ref.index]]
            )


def test_values_of_each_kind() -> None:
    assert texts(pa.array([b"a\xff", None], pa.binary())) == ["a\ufffd", None]
    assert texts(pa.array([7, None], pa.int16())) == ["7", None]
    assert flags(pa.array(["True", "0", None])) == [True, False, False]
    assert lists_of_texts(pa.array([["MIT", None], None, []], pa.list_(pa.string()))) == [("MIT",), (), ()]
    assert whole_numbers(pa.array([1.0, float("nan"), -3.0, 1e30, None])).tolist() == [1, 0, 0, 1 << 62, 0]
    for read, wrong in ((texts, pa.array([1.5])), (flags, pa.array(["maybe"])), (whole_numbers, pa.array(["7"]))):
        with pytest.raises(ValueError, match=r"is .*, expected"):
            read(wrong)


SHA1 = hashlib.sha1(b"x").hexdigest()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(20), pa.dictionary(pa.int32(), pa.binary())])
def test_raw_blob_ids_become_hexadecimal(kind: pa.DataType) -> None:
    raw = pa.array([bytes.fromhex(SHA1), None], pa.binary())
    array = raw.dictionary_encode() if pa.types.is_dictionary(kind) else raw.cast(kind)
    assert blob_ids(array) == [SHA1, None]


@pytest.mark.parametrize("written", [SHA1, SHA1.upper(), f" {SHA1}\r\n", f"swh:1:cnt:{SHA1}"])
def test_spellings_of_a_blob_id_are_one(written: str) -> None:
    assert blob_ids(pa.array([written])) == [SHA1]
    assert blob_ids(pa.array([written.encode()])) == [SHA1]


def test_what_is_no_blob_id_stays_as_it_is() -> None:
    assert blob_ids(pa.array([SHA1[:12], "", None, "a/b"])) == [SHA1[:12], "", None, "a/b"]
    assert blob_ids(pa.array([7])) == ["7"]
    with pytest.raises(ValueError, match="expected text"):
        blob_ids(pa.array([1.5]))


def test_flags_of_pandas_with_nan_are_no_flags_and_others_are_refused() -> None:
    assert flags(pa.array([1.0, 0.0, None, float("nan")], from_pandas=False)) == [True, False, False, False]
    with pytest.raises(ValueError, match=r"is 0\.5, expected true or false"):
        flags(pa.array([0.5]))


def test_a_list_written_as_text_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a list of texts"):
        lists_of_texts(pa.array(["['MIT', 'GPL-3.0']"]))
