"""Several processes that embed, each with a model of its own, where one process does not keep all cores busy."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import numpy as np

from finetune.embedding.encoder import CODE, Encoder, Vectors, make_prompts
from finetune.retrieval.prompts import Prompt
from mose.errors import MoseError

Tables = dict[int, Vectors]
_TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class EncoderOptions:
    """What `Encoder.from_pretrained` takes, to be sent to a process."""

    folder: str
    exits: tuple[int, ...] | None = None
    device: str = "auto"
    dtype: str = "float32"
    max_length: int = 0
    batch_tokens: int = 0
    threads: int = 0

    def open(self) -> Encoder:
        """The encoder; errors as in `Encoder.from_pretrained`."""
        more = {name: getattr(self, name) for name in ("device", "dtype", "max_length", "batch_tokens", "threads")}
        return Encoder.from_pretrained(self.folder, self.exits, **more)


class EncoderPool:
    """Processes that embed side by side; use it in a `with` block.

    Texts are dealt in parts, and a part is embedded by one process: the number of processes changes no number of an embedding.
    """

    def __init__(self, options: EncoderOptions, workers: int):
        """Each process uses `options.threads` threads, or 1."""
        self._options = EncoderOptions(**{**vars(options), "threads": options.threads or 1})
        # A forked process would inherit torch's threads in a state that they cannot continue from.
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._options), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "EncoderPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            if kind is not None:
                process.terminate()
            process.join()

    def encode_parts(self, parts: Iterator[tuple[int, Sequence[Prompt]]]) -> Iterator[tuple[int, Tables]]:
        """Tables [R, D] by exit of each numbered part, in the order in which they are finished.

        Raises:
            MoseError: what a process raised, or that one has ended.
        """
        free, busy = list(self._ends), dict[Connection, int]()
        waiting = True
        while waiting or busy:
            while free and waiting:
                part = next(parts, None)
                waiting = part is not None
                if part is not None:
                    end = free.pop()
                    self._send(end, part[1])
                    busy[end] = part[0]
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                yield busy.pop(ready), self._receive(ready)
                free.append(ready)

    def encode_exits(
        self, texts: Sequence[str], kind: str = CODE, language: str | Sequence[str] = "", instruction: str | None = None
    ) -> Tables:
        """As `Encoder.encode_exits`."""
        prompts = make_prompts(texts, kind, language, instruction)
        starts = range(0, max(1, len(prompts)), _TEXTS_AT_ONCE)
        found = dict(self.encode_parts((start, prompts[start : start + _TEXTS_AT_ONCE]) for start in starts))
        return {layer: np.concatenate([found[start][layer] for start in starts]) for layer in found[0]}

    def _send(self, end: Connection, prompts: Sequence[Prompt]) -> None:
        try:
            end.send(prompts)
        except OSError:
            raise MoseError("workers: a process has ended, perhaps for lack of memory; expected fewer of them") from None

    def _receive(self, end: Connection) -> Tables:
        try:
            answer: Tables | str = end.recv()
        except (EOFError, OSError):
            raise MoseError("workers: a process has ended, perhaps for lack of memory; expected fewer of them") from None
        if isinstance(answer, str):
            raise MoseError(answer)
        return answer


def _serve(end: Connection, options: EncoderOptions) -> None:
    """Embed what comes through the pipe until it is closed; the answer is tables, or an error's message."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder: Encoder | None = None
    while True:
        try:
            prompts: Any = end.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            encoder = encoder or options.open()
            end.send(encoder.encode_prompts(prompts))
        except MoseError as error:
            end.send(str(error))
