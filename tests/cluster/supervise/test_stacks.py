"""Stacks as ranks of the real trainer write them, and the rank that they name."""

import os
import signal
from pathlib import Path

import pytest

from cluster.supervise.stacks import RankStack, explain_stacks, read_stacks, suspects
from pretrain.monitoring.stacks import stacks_on_request


def test_a_rank_writes_its_stacks_when_asked(tmp_path: Path) -> None:
    with stacks_on_request(tmp_path / "stacks", 3, 8):
        assert [(one.rank, one.place) for one in read_stacks(tmp_path / "stacks")] == [(3, "")]
        os.kill(os.getpid(), signal.SIGUSR2)
        (one,) = read_stacks(tmp_path / "stacks")
        assert (one.rank, one.place) == (3, "no frame of ours")
        assert "test_a_rank_writes_its_stacks_when_asked" in (tmp_path / "stacks/rank-00003.txt").read_text()
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_the_innermost_frame_of_ours_in_the_main_thread_counts(tmp_path: Path) -> None:
    text = """rank 0 of 2, host n1, process 12
Thread 0x00007f (most recent call first):
  File "/env/pretrain/parallel/watchdog.py", line 9 in _watch

Current thread 0x00007e (most recent call first):
  File "/env/site-packages/torch/distributed/x.py", line 12 in all_reduce
  File "/env/pretrain/step.py", line 120 in count_globally
  File "/env/pretrain/train.py", line 20 in loop
"""
    (tmp_path / "rank-00000.txt").write_text(text)
    (tmp_path / "rank-junk.txt").write_bytes(b"\xff\0")
    assert read_stacks(tmp_path) == [RankStack(0, "n1", "pretrain/step.py:120 count_globally")]


A, B = "pretrain/step.py:1 count", "pretrain/data/prefetch.py:2 take"


@pytest.mark.parametrize(
    ("places", "named", "sentence"),
    [
        ((A, A, B), [2], "rank 2 (n2) at pretrain/data/prefetch.py:2 take; the others at pretrain/step.py:1 count"),
        ((A, "", A), [1], "rank 1 (n1) wrote no stack: stopped, or inside the kernel; the others at pretrain/step.py:1 count"),
        ((A, A, A), [], "all 3 ranks at pretrain/step.py:1 count"),
        (("", "", ""), [], "none of 3 ranks wrote a stack"),
        ((), [], "no rank wrote a stack"),
        ((A, B), [], f"rank 0 (n0) at {A}; rank 1 (n1) at {B}"),
    ],
)
def test_who_stands_elsewhere_is_named(places: tuple[str, ...], named: list[int], sentence: str) -> None:
    stacks = [RankStack(rank, f"n{rank}", place) for rank, place in enumerate(places)]
    assert [one.rank for one in suspects(stacks)] == named
    assert explain_stacks(stacks) == sentence
