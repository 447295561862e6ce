"""The index of a folder in one SQLite file: its functions, and the vectors of each distinct code at each exit.

Vectors belong to the code's text, not to its place, so that a function that moves is not embedded again. Each step is one
transaction: a search that is killed leaves a whole index, and the next one embeds what is missing. All vectors of an exit are
read and compared with the question; below some 100,000 functions this takes a fraction of a second, and is exact.

Letters: K codes, D width.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from finetune.embedding.search.functions import Function, SourceFile
from mose.dataset.functions import FunctionReader
from mose.errors import MoseError, first_line
from mose.files.json_file import parse_json

VERSION = 1
_SCHEMA = """
create table identity (value text);
create table files (path text primary key, digest blob);
create table codes (code integer primary key, digest blob unique, language text, text text);
create table functions (
    path text, number integer, name text, signature text, place text, code integer, primary key (path, number)
);
create index functions_by_code on functions (code);
"""
# Another process that indexes the same folder commits every few seconds.
_PATIENCE_SECONDS = 60.0
# Of a normalised vector, in float32 or made in bfloat16.
_NORM_TOLERANCE = 1e-2
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Identity:
    """What the vectors of an index depend on: it must not change while the file lives."""

    model: str
    """Fingerprint of the checkpoint."""
    exits: tuple[int, ...]
    """Exits whose vectors every code has."""
    later_exits: tuple[int, ...]
    """Exits whose vectors a code gets when it is a candidate of a cascade."""
    width: int
    max_length: int
    dtype: str
    folder: str
    version: int = VERSION

    def file_name(self) -> str:
        """A name that differs between identities."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16] + ".sqlite"


@dataclass(frozen=True)
class Code:
    """A distinct text of a function."""

    code: int
    language: str
    text: str


class Store:
    """An open index file; use it in a `with` block."""

    def __init__(self, path: Path, identity: Identity):
        """Open the index, or make it.

        Raises:
            MoseError: the file is damaged, something else, or the index of another model, exit or folder.
        """
        self.path, self.identity = path, identity
        with self.readable():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=_PATIENCE_SECONDS, isolation_level=None)
            try:
                # A file of others may hold functions of its own making, which must not run.
                self._database.execute("pragma trusted_schema = off")
                self._database.execute("pragma synchronous = normal")
                self._make_or_check()
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._database.close()

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        """Let what a damaged file raises in the block become one line."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise MoseError(f"{self.path}: cannot be used as an index: {first_line(error)}") from None
        except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
            raise MoseError(
                f"{self.path}: damaged index ({first_line(error)}); remove it, the next search makes it anew"
            ) from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("begin immediate")
        try:
            yield
            self._database.execute("commit")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("rollback")
            raise

    def _make_or_check(self) -> None:
        with self._transaction():
            tables = {row[0] for row in self._database.execute("select name from sqlite_master where type = 'table'")}
            if not tables:
                for statement in _SCHEMA.split(";")[:-1]:
                    self._database.execute(statement)
                for layer in (*self.identity.exits, *self.identity.later_exits):
                    self._database.execute(f"create table {_table(layer)} (code integer primary key, vector blob)")
                self._database.execute("insert into identity values (?)", (json.dumps(asdict(self.identity)),))
                return
            if "identity" not in tables:
                raise MoseError(f"{self.path}: a database of something else, expected an index of `mose-finetune search`")
            row = self._database.execute("select value from identity").fetchone()
        found = parse_json(str(row[0] if row else "").encode())
        wanted = json.loads(json.dumps(asdict(self.identity)))
        different = next((name for name in wanted if not isinstance(found, dict) or found.get(name) != wanted[name]), None)
        if different is not None:
            there = found.get(different) if isinstance(found, dict) else found
            message = f"index of another {different.removeprefix('later_')} ({there}), expected {wanted[different]}"
            raise MoseError(f"{self.path}: {message}; name another file with --index, or remove this one")

    def update(self, files: Iterable[SourceFile]) -> int:
        """Bring the functions up to date with the files; returns the number of files.

        Files of the same digest are not parsed again. Codes that no function has any more are dropped with their vectors.
        """
        reader = FunctionReader()
        with self.readable(), self._transaction():
            known = dict(self._database.execute("select path, digest from files").fetchall())
            seen, changed = 0, False
            for file in files:
                seen += 1
                digest = file.digest
                if known.pop(file.path, None) == digest:
                    continue
                changed = True
                self._remove(file.path)
                self._add(file.path, digest, file.functions(reader))
            for path in known:
                self._remove(path)
            if changed or known:
                self._database.execute("delete from codes where code not in (select code from functions)")
                for layer in (*self.identity.exits, *self.identity.later_exits):
                    self._database.execute(f"delete from {_table(layer)} where code not in (select code from codes)")
        return seen

    def _remove(self, path: str) -> None:
        self._database.execute("delete from files where path = ?", (path,))
        self._database.execute("delete from functions where path = ?", (path,))

    def _add(self, path: str, digest: bytes, functions: Sequence[Function]) -> None:
        self._database.execute("insert into files values (?, ?)", (path, digest))
        for number, function in enumerate(functions):
            text = f"{function.language}\0{function.code}".encode("utf-8", "surrogatepass")
            key = hashlib.blake2b(text, digest_size=16).digest()
            values = (key, function.language, function.code)
            self._database.execute("insert or ignore into codes (digest, language, text) values (?, ?, ?)", values)
            (code,) = self._database.execute("select code from codes where digest = ?", (key,)).fetchone()
            row = (path, number, function.name, function.signature, function.place, code)
            self._database.execute("insert into functions values (?, ?, ?, ?, ?, ?)", row)

    def missing(self) -> list[Code]:
        """Codes that lack the vector of an exit that every code has, shortest first."""
        lacks = " or ".join(f"code not in (select code from {_table(layer)})" for layer in self.identity.exits)
        with self.readable():
            rows = self._database.execute(f"select code, language, text from codes where {lacks} order by length(text), code")
            return [Code(int(code), str(language), str(text)) for code, language, text in rows]

    def missing_of(self, codes: Sequence[int], layer: int) -> list[Code]:
        """Those of `codes` that lack the vector of exit `layer`."""
        with self.readable():
            there = {int(row[0]) for row in self._database.execute(f"select code from {_table(layer)}")}
            query = "select code, language, text from codes where code = ?"
            rows = [self._database.execute(query, (code,)).fetchone() for code in codes if code not in there]
            return [Code(int(code), str(language), str(text)) for code, language, text in rows]

    def put(self, codes: Sequence[Code], tables: dict[int, Vectors]) -> None:
        """Keep the vectors [K, D] of codes, by exit."""
        with self.readable(), self._transaction():
            for layer, table_KD in tables.items():
                rows = [(code.code, vector.astype("<f4").tobytes()) for code, vector in zip(codes, table_KD, strict=True)]
                self._database.executemany(f"insert or replace into {_table(layer)} values (?, ?)", rows)

    def functions(self) -> tuple[list[Function], NDArray[np.int64]]:
        """All functions in the order of their places, without their code, and the code of each."""
        columns = "name, language, place, signature, functions.code"
        query = f"select {columns} from functions join codes on codes.code = functions.code order by path, number"
        functions, codes = [], []
        with self.readable():
            for name, language, place, signature, code in self._database.execute(query):
                functions.append(Function(str(name), "", str(language), str(place), str(signature)))
                codes.append(int(code))
        return functions, np.array(codes, dtype=np.int64)

    def vectors(self, layer: int) -> tuple[NDArray[np.int64], Vectors]:
        """Codes [K], ascending, and their vectors [K, D] at an exit.

        Raises:
            MoseError: a vector is damaged.
        """
        with self.readable():
            rows = self._database.execute(f"select code, vector from {_table(layer)} order by code").fetchall()
            codes_K = np.array([int(code) for code, _ in rows], dtype=np.int64)
            size = 4 * self.identity.width
            if any(not isinstance(vector, bytes) or len(vector) != size for _, vector in rows):
                raise ValueError(f"a vector at exit {layer} has not {size} bytes")
            table_KD = np.frombuffer(b"".join(vector for _, vector in rows), dtype="<f4").reshape(len(rows), self.identity.width)
            norms_K = np.einsum("kd,kd->k", table_KD, table_KD)
            if not (np.abs(norms_K - 1) < _NORM_TOLERANCE).all():
                raise ValueError(f"a vector at exit {layer} is not normalised")
            return codes_K, table_KD.astype(np.float32, copy=False)


def _table(layer: int) -> str:
    return f"vectors_{layer:02d}"
