"""Python's garbage collector, run between steps at a fixed interval in place of whenever objects have been allocated."""

import contextlib
import gc
from collections.abc import Callable, Iterator

EVERY_STEPS = 50


@contextlib.contextmanager
def collected_between_steps(after_step: Callable[[], None], every_steps: int = EVERY_STEPS) -> Iterator[Callable[[], None]]:
    """Switch automatic collection off inside the block, and collect after every `every_steps` calls of the result.

    The result calls `after_step` first. A collection pauses its rank for tenths of a second, and every other rank waits for it in
    the next collective: at arbitrary moments, the pauses of 512 ranks add up; at one step, they coincide.
    """
    was_enabled, steps = gc.isenabled(), 0
    gc.collect()
    # What was built before the first step lives as long as the run, so later collections need not visit it.
    gc.freeze()
    gc.disable()

    def after() -> None:
        nonlocal steps
        after_step()
        steps += 1
        if steps % every_steps == 0:
            gc.collect()

    try:
        yield after
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
