"""The source that reads parquet rows in the schema of The Stack v2 train-full-ids, with `content` or a blob store."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_prep.sources.blobs.store import BODY, NOT_FETCHED, open_store
from data_prep.sources.file_kinds import UNKNOWN_LANGUAGE
from data_prep.sources.repositories import RepositoryRef, SourceFile, SourceKind, content_sha1
from data_prep.sources.stack_v2.parquet_file import (
    CONTENT,
    FILE_COLUMNS,
    columns_of,
    corrupt,
    expand,
    footer_fingerprint,
    open_parquet,
    stamp,
)
from data_prep.sources.stack_v2.row_batches import LIMIT_BYTES, binary_content, leaves_of, plan_row_group, row_batches
from data_prep.sources.stack_v2.row_cache import CACHE_BYTES, process_cache
from mose.errors import MoseError
from mose.files.parquet_errors import PARQUET_ERRORS

KIND = "stack_v2"
REPOSITORY_TOO_LARGE = "repository_too_large"
"""`SourceFile.problem` if a row, or one before it in its row group, cannot be decoded within the memory bound."""
NO_CONTENT = "no_content"
"""`SourceFile.problem` if content is null and there is no blob store."""
READ_COLUMNS = (*FILE_COLUMNS, CONTENT)


@dataclass(frozen=True)
class RowFiles:
    """The files of one row."""

    files: pa.StructArray
    """One struct per file: the columns of `FILE_COLUMNS` and, if it was read, `content` as bytes."""
    too_large: bool = False


def list_rows(pattern: str, has_store: bool = False) -> list[RepositoryRef]:
    """Each row of each parquet file that matches the glob or URL `pattern` as a repository; reads names only.

    Raises:
        MoseError: no file matches, one is not a readable parquet file, lacks a column, or lacks content without a blob store.
    """
    return [
        RepositoryRef(name=name, kind=KIND, location=path, index=row)
        for path in expand(pattern)
        for row, name in enumerate(row_names(path, has_store))
    ]


def row_names(path: str, has_store: bool) -> list[str]:
    """`repo_name` of each row of a parquet file; checks the schema first.

    Raises:
        MoseError: see `list_rows`; or a name is empty.
    """
    check_repositories(path, has_store)
    try:
        names: list[str] = open_parquet(path).read(columns=["repo_name"], use_threads=False).column("repo_name").to_pylist()
    except PARQUET_ERRORS as error:
        raise corrupt(path, error) from None
    for row, name in enumerate(names):
        if not name:
            raise MoseError(f"{path}: repo_name: row {row} is empty; expected a name such as owner/project")
    return names


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
    """The row's files in path order; a file without content has a `problem` instead.

    Raises:
        MoseError: the file is truncated or corrupt, or was replaced by a shorter one; the blob store is damaged.
    """
    return source_files(ref.name, row_files(ref.location, ref.index), wanted, blob_store)


def source_files(name: str, row: RowFiles, wanted: Callable[[str], bool], blob_store: str) -> Iterator[SourceFile]:
    """The wanted files of a row in path order, bodies read one at a time.

    Raises:
        MoseError: the blob store is damaged.
    """
    paths = ["/" + (path or "").lstrip("/") for path in row.files.field("path").to_pylist()]
    order = [i for i in sorted(range(len(paths)), key=lambda index: (paths[index], index)) if wanted(paths[i])]
    columns = {column: row.files.field(column).to_pylist() for column in FILE_COLUMNS}
    has_content = any(row.files.type.field(i).name == CONTENT for i in range(row.files.type.num_fields))
    contents = row.files.field(CONTENT) if has_content else pa.nulls(len(paths), pa.large_binary())
    # All ids of a row are located at once: the store's search is vectorised, while bodies are read one by one to save memory.
    store = open_store(blob_store) if blob_store else None
    absent = [i for i in order if not contents[i].is_valid] if store else []
    places = dict(zip(absent, store.locate_names([columns["blob_id"][i] or "" for i in absent]), strict=True)) if store else {}
    for i in order:
        facts = {column: columns[column][i] for column in columns}
        encoding = facts["src_encoding"] or "UTF-8"
        if contents[i].is_valid:
            content, encoding = original_bytes(contents[i].as_py(), encoding)
            problem = ""
        else:
            problem, content = store.get_located(places[i]) if store else (NO_CONTENT, b"")
        # The store may hold the bodies of a row that is too large to decode, so report the row only for files it lacks.
        if row.too_large and problem in (NO_CONTENT, NOT_FETCHED):
            problem = REPOSITORY_TOO_LARGE
        yield _source_file(name, paths[i], content, encoding, facts, "" if problem == BODY else problem)


def _source_file(repository: str, path: str, content: bytes, encoding: str, facts: dict[str, Any], problem: str) -> SourceFile:
    return SourceFile(
        repository=repository,
        path=path,
        content=content,
        language=facts["language"] or UNKNOWN_LANGUAGE,
        licences=tuple(facts["detected_licenses"] or ()),
        licence_type=facts["license_type"] or "unknown",
        blob_id=facts["blob_id"] or content_sha1(content),
        encoding=encoding,
        is_vendored=bool(facts["is_vendor"]),
        is_generated=bool(facts["is_generated"]),
        problem=problem,
    )


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
    cached: pa.ChunkedArray | None = process_cache().get((path, stamp(path), group), lambda: _small_row_group(path, group))
    if cached is not None:
        return RowFiles(cached.slice(inside, 1).combine_chunks().flatten())
    for batch in row_batches(path, group, READ_COLUMNS, LIMIT_BYTES // 8, repository=()):
        if batch.first <= inside < batch.first + batch.rows.num_rows:
            return batch_row(batch.rows, inside - batch.first, batch.too_large)
    raise MoseError(f"{path}: row group {group} ended before row {inside}; expected the file that was listed")


def batch_row(rows: pa.RecordBatch, index: int, too_large: bool) -> RowFiles:
    """The files of row `index` of a batch."""
    files = rows.column("files").slice(index, 1)
    return RowFiles(binary_content(files).flatten(), too_large)


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
    files = binary_content(files)
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
    facts=lambda pattern: [footer_fingerprint(path) for path in expand(pattern)],
)
