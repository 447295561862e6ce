"""The source that reads parquet rows in the schema of The Stack v2 train-full-ids, with `content` or a blob store."""

import functools
import itertools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_prep.sources.blobs.store import BODY, NOT_FETCHED, open_store
from data_prep.sources.detection.language import UNKNOWN_LANGUAGE
from data_prep.sources.repositories import (
    OVER_REPOSITORY_LIMIT,
    RepositoryRef,
    SourceFile,
    SourceKind,
    content_sha1,
    is_full,
)
from data_prep.sources.stack_v2.file_columns import (
    blob_ids,
    flags,
    is_sha1,
    lists_of_texts,
    normal_files,
    read_column,
    texts,
    whole_numbers,
)
from data_prep.sources.stack_v2.parquet_file import (
    CONTENT,
    FILE_COLUMNS,
    LENGTH,
    columns_of,
    corrupt,
    expand,
    footer_fingerprint,
    open_parquet,
    stamp,
)
from data_prep.sources.stack_v2.row_batches import LIMIT_BYTES, leaves_of, plan_row_group, row_batches
from data_prep.sources.stack_v2.row_cache import CACHE_BYTES, process_cache
from mose.errors import MoseError, first_line
from mose.files.parquet_errors import PARQUET_ERRORS
from mose.files.storage import storage_path

KIND = "stack_v2"
REPOSITORY_TOO_LARGE = "repository_too_large"
"""`SourceFile.problem` if a row is larger than the memory bound, or stands behind one that is too large to be decoded."""
NO_CONTENT = "no_content"
"""`SourceFile.problem` if content is null and there is no blob store."""
READ_COLUMNS = (*FILE_COLUMNS, LENGTH, CONTENT)


@dataclass(frozen=True)
class RowFiles:
    """The files of one row."""

    files: pa.StructArray
    """One struct per file: the columns of `FILE_COLUMNS` and, where they exist, `length_bytes` and `content` as bytes."""
    too_large: bool = False
    place: str = ""
    """File, row group and row, for messages."""


def list_rows(pattern: str, has_store: bool = False) -> list[RepositoryRef]:
    """Each row of each parquet file that matches the glob or URL `pattern` as a repository; reads names only.

    Raises:
        MoseError: no file matches, one is not a readable parquet file, lacks a column, or lacks content without a blob store.
    """
    return [
        RepositoryRef(name=name or f"{storage_path(path).name}: row {row}", kind=KIND, location=path, index=row)
        for path in expand(pattern)
        for row, name in enumerate(row_names(path, has_store))
    ]


def row_names(path: str, has_store: bool) -> list[str]:
    """`repo_name` of each row of a parquet file, empty where it is null; checks the schema first.

    Raises:
        MoseError: see `list_rows`.
    """
    check_repositories(path, has_store)
    try:
        column = open_parquet(path).read(columns=["repo_name"], use_threads=False).column("repo_name")
    except PARQUET_ERRORS as error:
        raise corrupt(path, error) from None
    try:
        return [name or "" for chunk in column.chunks for name in texts(chunk)]
    except ValueError as error:
        raise MoseError(f"{path}: repo_name: {first_line(error)}") from None


def check_repositories(path: str, has_store: bool) -> None:
    """Check that the rows are repositories and that there are bodies for them.

    Raises:
        MoseError: rows are single files, or there is neither a content column nor a blob store.
    """
    columns = columns_of(path)
    if not columns.is_nested:
        raise MoseError(f"{path}: files: no such column; expected one row per repository: run `mose-data group` on rows of files")
    if CONTENT not in columns.file and not has_store:
        raise MoseError(
            f"{path}: files.content: no such column; expected contents, or sources.blob_store with what `mose-data fetch` stored"
        )


def read(ref: RepositoryRef, wanted: Callable[[str], bool], blob_store: str = "") -> Iterator[SourceFile]:
    """The row's files in path order; a file without content has a `problem` instead. A row without a name is refused.

    Raises:
        MoseError: the file is truncated or corrupt, or was replaced by a shorter one; the blob store is damaged.
    """
    if ref.name == f"{storage_path(ref.location).name}: row {ref.index}":
        raise MoseError(f"{ref.location}: repo_name: row {ref.index} is empty; expected a name such as owner/project")
    yield from source_files(ref.name, row_files(ref.location, ref.index), wanted, blob_store)


def source_files(name: str, row: RowFiles, wanted: Callable[[str], bool], blob_store: str) -> Iterator[SourceFile]:
    """The wanted files of a row in path order, bodies read one at a time.

    Raises:
        MoseError: the blob store is damaged, or a column has a type that cannot be read.
    """
    try:
        columns = _facts(row.files)
    except (ValueError, pa.ArrowException) as error:
        raise MoseError(f"{row.place}: {first_line(error)}") from None
    paths = [_in_repository(path) for path in columns["path"]]
    order = [i for i in sorted(range(len(paths)), key=lambda index: (paths[index], index)) if wanted(paths[i])]
    has_content = any(field.name == CONTENT for field in row.files.type)
    contents = row.files.field(CONTENT) if has_content else pa.nulls(len(paths), pa.large_binary())
    # All ids of a row are located at once: the store's search is vectorised, while bodies are read one by one to save memory.
    store = open_store(blob_store) if blob_store else None
    absent = [i for i in order if not contents[i].is_valid] if store else []
    places = dict(zip(absent, store.locate_names([columns["blob_id"][i] or "" for i in absent]), strict=True)) if store else {}
    for i in order:
        facts = {column: columns[column][i] for column in columns}
        encoding = facts["src_encoding"] or "UTF-8"
        if is_full(wanted):
            problem, content = OVER_REPOSITORY_LIMIT, b""
        elif contents[i].is_valid:
            content, encoding = original_bytes(contents[i].as_py(), encoding)
            problem = ""
        else:
            problem, content = store.get_located(places[i]) if store else (NO_CONTENT, b"")
        # The store may hold the bodies of a row that is too large to decode, so report the row only for files it lacks.
        if row.too_large and problem in (NO_CONTENT, NOT_FETCHED):
            problem = REPOSITORY_TOO_LARGE
        yield _source_file(name, paths[i], content, encoding, facts, "" if problem == BODY else problem)


def metadata_of_rows(
    names: list[str | None], rows: pa.RecordBatch, too_large: bool, wanted: Callable[[str], bool]
) -> Iterator[SourceFile]:
    """The files of the wanted rows (`names`: of their repositories), as `source_files` gives them where content is not read.

    The columns of all rows are read at once: where rows have few files, that costs a fraction of reading them one by one.

    Raises:
        ValueError, pa.ArrowException: a column of some row cannot be read; before the first file.
    """
    lists = normal_files(rows.column("files"))
    columns = _facts(lists.flatten())
    columns["blob_id"] = [blob_id if is_sha1(blob_id) else None for blob_id in columns["blob_id"]]
    paths = [_in_repository(path) for path in columns["path"]]
    problem = REPOSITORY_TOO_LARGE if too_large else NO_CONTENT
    bounds = itertools.pairwise(lists.offsets.to_pylist())
    return (
        _source_file(name, paths[i], b"", columns["src_encoding"][i] or "UTF-8", {n: v[i] for n, v in columns.items()}, problem)
        for name, (start, end) in zip(names, bounds, strict=True)
        if name and wanted(name)
        for i in sorted(range(start, end), key=paths.__getitem__)
    )


def _in_repository(path: str | None) -> str:
    return "/" + (path or "").lstrip("/")


def _facts(files: pa.StructArray) -> dict[str, Any]:
    """The columns other than content as lists, one value per file.

    Raises:
        ValueError: a column has a type that cannot be read; the message names it.
    """
    readers: dict[str, Any] = {
        "blob_id": blob_ids,
        "detected_licenses": lists_of_texts,
        "is_vendor": flags,
        "is_generated": flags,
    }
    facts = {name: read_column(f"files.{name}", readers.get(name, texts), files.field(name)) for name in FILE_COLUMNS}
    has_length = any(field.name == LENGTH for field in files.type)
    return {**facts, LENGTH: whole_numbers(files.field(LENGTH)).tolist() if has_length else [0] * len(files)}


def _source_file(repository: str, path: str, content: bytes, encoding: str, facts: dict[str, Any], problem: str) -> SourceFile:
    return SourceFile(
        repository=repository,
        path=path,
        content=content,
        language=facts["language"] or UNKNOWN_LANGUAGE,
        licences=tuple(facts["detected_licenses"] or ()),
        licence_type=facts["license_type"] or "unknown",
        blob_id=_blob_id_of(facts["blob_id"], content, problem),
        encoding=encoding,
        is_vendored=bool(facts["is_vendor"]),
        is_generated=bool(facts["is_generated"]),
        problem=problem,
        size=facts[LENGTH] if problem else -1,
    )


def _blob_id_of(found: str | None, content: bytes, problem: str) -> str:
    """The blob id that the row states; computed where it states none, or something else than a SHA-1 beside the content."""
    return found if found and (problem or is_sha1(found)) else content_sha1(content)


def original_bytes(utf8: bytes, encoding: str) -> tuple[bytes, str]:
    """The bytes that the parquet's text was decoded from, and their encoding; UTF-8 if they cannot be restored.

    A parquet string is UTF-8 whatever `src_encoding` says; `blob_id` is the SHA-1 of the original bytes.
    """
    if encoding.upper() == "UTF-8":
        return utf8, encoding
    try:
        return utf8.decode("utf-8").encode(encoding), encoding
    except (LookupError, ValueError):
        return utf8, "UTF-8"


def row_files(path: str, row: int) -> RowFiles:
    """The files of one row of a parquet file, by its number.

    Raises:
        MoseError: the file is truncated or corrupt, or has no such row.
    """
    group, inside = _position(path, row)
    place = f"{path}: row group {group}: row {inside}"
    key = (path, stamp(path), group)
    try:
        cached: pa.ChunkedArray | None = process_cache().get(key, lambda: _small_row_group(path, group))
        if cached is not None:
            return RowFiles(normal_files(cached.slice(inside, 1).combine_chunks()).flatten(), place=place)
        return _streamed_row(path, group, inside, key)
    except (ValueError, pa.ArrowException) as error:
        raise MoseError(f"{place}: {first_line(error)}") from None


def _streamed_row(path: str, group: int, inside: int, key: tuple[Hashable, ...]) -> RowFiles:
    """A row of a row group that is too large to be decoded as a whole.

    Where rows above the limit are passed over, which costs as much as decoding them, the rows behind are kept for later calls.
    """
    cache, found = process_cache(), None
    if (*key, inside) in cache.values:
        kept: RowFiles = cache.get((*key, inside), lambda: (None, 0))
        return kept
    keeps = plan_row_group(path, group).has_large_row
    for batch in row_batches(path, group, READ_COLUMNS, LIMIT_BYTES // 8, repository=()):
        for index in range(batch.rows.num_rows) if keeps or batch.first <= inside < batch.first + batch.rows.num_rows else ():
            number = batch.first + index
            if number == inside or keeps:
                row = batch_row(batch.rows, index, batch.too_large, f"{path}: row group {group}: row {number}")
                found = row if number == inside else found
            if keeps:
                cache.get((*key, number), functools.partial(_with_size, row))
        if found is not None and not keeps:
            return found
    if found is None:
        raise MoseError(f"{path}: row group {group} ended before row {inside}; expected the file that was listed")
    return found


def _with_size(row: RowFiles) -> tuple[RowFiles, int]:
    return row, int(row.files.nbytes)


def batch_row(rows: pa.RecordBatch, index: int, too_large: bool, place: str) -> RowFiles:
    """The files of row `index` of a batch, which lies at `place`; raises ValueError if its columns cannot be read."""
    return RowFiles(normal_files(rows.column("files").slice(index, 1)).flatten(), too_large, place)


def _small_row_group(path: str, group: int) -> tuple[pa.ChunkedArray | None, int]:
    """A row group's `files` and their size in bytes; None if the row group is too large for the cache."""
    plan = plan_row_group(path, group)
    metadata = open_parquet(path).metadata.row_group(group)
    if max(plan.total_bytes, metadata.total_byte_size) > CACHE_BYTES // 2:
        return None, 0
    try:
        leaves = leaves_of(columns_of(path), READ_COLUMNS, ())
        files = open_parquet(path).read_row_group(group, columns=leaves, use_threads=False).column("files")
    except PARQUET_ERRORS as error:
        raise corrupt(path, error) from None
    return files, int(files.nbytes)


def _position(path: str, row: int) -> tuple[int, int]:
    """Number of the row group, and of the row inside it."""
    metadata = open_parquet(path).metadata
    inside = row
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if inside < rows:
            return group, inside
        inside -= rows
    raise MoseError(f"{path}: has no row {row}; expected the file that was listed")


ROWS = SourceKind(
    KIND,
    list_entry=lambda pattern, blob_store: list_rows(pattern, bool(blob_store)),
    read=read,
    knows_files=True,
    knows_licences=True,
    facts=lambda pattern: [footer_fingerprint(path) for path in expand(pattern)],
)
