"""Translates seeds concurrently: a bounded number of requests, retries with back-off, each answer on the disk before the next."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.synthconl.mining.seed_file import Seed, read_seeds
from data_prep.synthconl.translation.answer import BAD_REQUEST, OK, AnswerCheck, Verdict
from data_prep.synthconl.translation.config import TranslateConfig
from data_prep.synthconl.translation.counts import TranslationCounts
from data_prep.synthconl.translation.journal import Entry, Journal
from data_prep.synthconl.translation.prompt import draw_target, prompt_of
from data_prep.synthconl.translation.server import Answer, BadRequestError, PassingError, Server
from mose.errors import MoseError
from mose.seeding import derive_key

# After so many rows in a row without an answer, the server is gone; trying each further row would take days.
MAX_FAILURES_IN_A_ROW = 50
# After so many rows before the first translation, whose last answers were all rejected, the model does not do what is asked.
MAX_REJECTED_AT_FIRST = 50
_KEPT_CHARACTERS = 2000


class JournalQueue:
    """Appends answers from many workers: all that wait are written and flushed together, in a thread.

    One fsync per answer would bound a run by the disk's latency; one per group is as safe, since a worker waits for its group.
    """

    def __init__(self, journal: Journal):
        self._journal = journal
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._writing = asyncio.Lock()
        self._failure: OSError | None = None

    async def append(self, entry: Entry) -> None:
        """Return once the answer is on the disk.

        Raises:
            OSError: the disk is full; neither this answer nor a later one is in the journal.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, done))
        async with self._writing:
            group, self._waiting = self._waiting, []
            if group:
                # Shielded: a worker that is cancelled must not leave the journal to a thread that nobody waits for.
                await asyncio.shield(asyncio.ensure_future(self._write(group)))
        await done
        if self._failure is not None:
            raise self._failure

    async def _write(self, group: list[tuple[Entry, "asyncio.Future[None]"]]) -> None:
        try:
            if self._failure is None:
                await asyncio.to_thread(self._journal.append, [entry for entry, _ in group])
        except OSError as error:
            # Not set on the futures: asyncio would print the traceback of each whose worker has been cancelled by then.
            self._failure = error
        for _, done in group:
            if not done.cancelled():
                done.set_result(None)


@dataclass(frozen=True)
class Work:
    """A seed that needs an answer."""

    seed: Seed
    target: str


class Translator:
    """One run over the seeds of a task."""

    def __init__(
        self, config: TranslateConfig, server: Server, journal: Journal, counts: TranslationCounts, show: Callable[[], None]
    ):
        self._config, self._server, self._journal, self._counts, self._show = config, server, journal, counts, show
        self._queue, self._check = JournalQueue(journal), AnswerCheck()
        self._failures_in_a_row = 0

    async def run(self) -> None:
        """Translate every seed that the journal has no final answer to.

        Raises:
            MoseError: the server is gone, or answers what no retry would mend; the seeds file is damaged.
            OSError: the disk is full.
        """
        work = self.pending()
        first = next(work, None)
        if first is None:
            return
        await self._patiently(self._server.check, "check")
        rest = iter([first])
        workers = [asyncio.create_task(self._work(rest, work)) for _ in range(self._config.max_concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def pending(self) -> Iterator[Work]:
        """The seeds of this task that need an answer; counts the others."""
        counts, config, asked = self._counts, self._config, set[str]()
        for row, seed in enumerate(read_seeds(Path(config.seeds))):
            if row % config.num_tasks != config.task:
                continue
            counts.rows += 1
            identity = seed.id
            if identity in asked:
                counts.repeated += 1
            elif self._journal.is_final(identity, config.tries):
                counts.done_before += 1
            elif len(seed.code_a) > config.max_code_characters:
                counts.huge += 1
                counts.first_huge = counts.first_huge or f"row {row} with {len(seed.code_a):,}"
            else:
                asked.add(identity)
                yield Work(seed, draw_target(config.seed, identity, seed.lang_a, config.targets))

    async def _work(self, *parts: Iterator[Work]) -> None:
        for work in parts:
            for item in work:
                await self._translate(item)
                self._show()

    async def _translate(self, work: Work) -> None:
        state = self._journal.states.get(work.seed.id)
        number, outcome = (state.answers, state.outcome) if state else (0, "")
        while number < self._config.tries and outcome != OK:
            number += 1
            try:
                entry = await self._entry(work, number, outcome)
            except PassingError as error:
                self._give_up(error)
                return
            await self._queue.append(entry)
            self._counts.answered(entry)
            outcome = entry.outcome
            if outcome == BAD_REQUEST:
                # The same prompt with a hint is longer still.
                break
        if outcome == OK:
            self._counts.translated += 1
        else:
            self._counts.exhausted[outcome] += 1
            self._check_first()

    def _check_first(self) -> None:
        """Stop where the model has translated nothing yet, in this run or before, and rejections add up: each is paid for."""
        exhausted, states = self._counts.exhausted, self._journal.states.values()
        if sum(exhausted.values()) != MAX_REJECTED_AT_FIRST or any(state.outcome == OK for state in states):
            return
        reasons = ", ".join(f"{number} {reason}" for reason, number in exhausted.most_common())
        raise MoseError(
            f"{self._config.url}: model: no answer to the first {MAX_REJECTED_AT_FIRST} functions is accepted ({reasons}); "
            f"expected code in one block, see the rejected answers in {self._config.journal}"
        )

    async def _entry(self, work: Work, number: int, rejected: str) -> Entry:
        """The journal's line of the next answer to a seed."""
        config, seed, began = self._config, work.seed, time.monotonic()
        prompt = prompt_of(seed.code_a, seed.lang_a, work.target, rejected, number)
        max_tokens = config.max_tokens * 2 ** (number - 1) if rejected == "truncated" else config.max_tokens
        try:
            answer = await self._patiently(lambda: self._server.ask(prompt, max_tokens), seed.id)
            verdict = self._check.judge(answer.text, answer.finish_reason, work.target, seed.lang_a, seed.code_a)
        except BadRequestError as error:
            answer, verdict = Answer(str(error), "", 0, 0, config.model), Verdict(BAD_REQUEST)
        return Entry(
            id=seed.id,
            target=work.target,
            number=number,
            outcome=verdict.outcome,
            code=verdict.code,
            rejected="" if verdict.outcome == OK else answer.text[:_KEPT_CHARACTERS],
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            seconds=round(time.monotonic() - began, 3),
            server=config.url,
            model=answer.model or config.model,
        )

    async def _patiently(self, call: Callable[[], Any], what: str) -> Any:
        """Await a call, again after failures that may pass.

        Raises:
            PassingError: the last failure, after `attempts` calls.
            MoseError: as the call; for the first check also where the server is down.
        """
        last = PassingError("")
        for attempt in range(self._config.attempts):
            if attempt:
                self._counts.retries[last.name] += 1
                await asyncio.sleep(backoff_seconds(self._config, what, attempt, last.retry_after))
            self._counts.requests += 1
            try:
                return await call()
            except PassingError as error:
                last = error
        raise last

    def _give_up(self, error: PassingError) -> None:
        self._counts.given_up[error.name] += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise gone(self._config, error, f"{MAX_FAILURES_IN_A_ROW} functions in a row")


def gone(config: TranslateConfig, error: PassingError, what: str) -> MoseError:
    """The message for a server that does not answer."""
    return MoseError(
        f"{config.url}: url: no answer to {what}, the last failure: {error.name}; "
        "answers so far are in the journal: run again when the server is up"
    )


def backoff_seconds(config: TranslateConfig, what: str, attempt: int, retry_after: float) -> float:
    """The wait before repeat number `attempt` (from 1): uniform up to a doubling bound, at least what the server asks for.

    The jitter spreads the repeats of requests that failed together; it is derived from the seed's id.
    """
    bound = min(config.max_backoff_seconds, config.backoff_seconds * 2.0 ** min(attempt - 1, 32))
    return max(min(retry_after, config.max_backoff_seconds), bound * derive_key("translate backoff", what, attempt) / 2.0**64)
