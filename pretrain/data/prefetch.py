"""Prepares the next share of a global batch in a background thread while the current step runs."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from pretrain.data.loader import GlobalBatchLoader
from pretrain.data.micro_batch import MicroBatch


class Prefetcher:
    """Gives shares in order and reads one ahead. The thread decides when a share is read, never what it holds.

    A thread suffices, since reading and masking are mostly numpy calls, which release the interpreter lock.
    """

    def __init__(self, loader: GlobalBatchLoader, consumed_rows: int):
        """Start reading the share that follows `consumed_rows` rows."""
        self._loader = loader
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._consumed_rows = consumed_rows
        self._next = self._submit()
        self.last_wait_seconds = 0.0
        """How long the last `take` waited for its share, in seconds."""

    def _submit(self) -> Future[list[MicroBatch]]:
        return self._executor.submit(self._loader.share, self._consumed_rows)

    def take(self) -> list[MicroBatch]:
        """The next share; reading of the one after it starts at once.

        Raises:
            MoseError: the loader failed on this share; its error in the thread is raised here.
        """
        began = time.perf_counter()
        share = self._next.result()
        self.last_wait_seconds = time.perf_counter() - began
        self._consumed_rows += self._loader.plan.global_batch_rows
        self._next = self._submit()
        return share

    def close(self) -> None:
        """Wait for the share that is being read, then end the thread; afterwards the memory maps may be closed."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
