"""What follows after a start, from made-up histories."""

import dataclasses

import pytest

from cluster.jobs.config import RecoveryConfig
from cluster.supervise.decide import cause_of, decide, excluded_nodes, failures_without_a_checkpoint
from cluster.supervise.history import Start

BEGUN = Start("12", 0, ("n1", "n2"), 0.0, 10, saved_step=10)
LIMITS = RecoveryConfig(same_step_failures=2)


def history(*causes: str, saved: int = 10, **more: object) -> list[Start]:
    starts = [dataclasses.replace(BEGUN, restarts=number, cause=cause) for number, cause in enumerate(causes)]
    return [*starts[:-1], dataclasses.replace(starts[-1], saved_step=saved, **more)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("causes", "saved", "code", "again", "message"),
    [
        (("finished",), 30, 0, False, "run is finished"),
        (("stopped",), 10, 75, True, "queued again after 0 restarts"),
        (("failed",), 10, 9, True, "queued again after 0 restarts because it failed with code 9"),
        (("failed", "failed"), 10, 9, False, "stopped with code 9: a crash loop, 2 failures in a row after step 10"),
        (("failed", "lost", "failed"), 10, 9, False, "a crash loop, 2 failures in a row"),
        (("failed", "stopped", "stopped"), 10, 75, True, "queued again"),
        (("failed", "failed"), 20, 9, True, "queued again after 1 restarts"),
        (("hung", "hung"), 10, 9, False, "hung: a crash loop"),
        (("bad input",), 10, 2, False, "stopped with code 2 before a new checkpoint"),
        (("bad input",), 20, 2, True, "queued again"),
        (("diverged",), 20, 3, False, "run diverged: see skipped.jsonl"),
        (("cancelled",), 20, 143, False, "cancelled"),
        (("lost",) * 4 + ("stopped",), 20, 75, False, "not started again: 4 restarts, max_restarts is 4"),
    ],
)
def test_a_start_is_followed_by(causes: tuple[str, ...], saved: int, code: int, again: bool, message: str) -> None:
    found = decide("run", history(*causes, saved=saved, code=code), 4, LIMITS)
    assert (found.again, message in found.message) == (again, True), found
    assert found.again or found.code in (code, 1)


def test_a_failure_of_an_earlier_checkpoint_does_not_count() -> None:
    starts = [dataclasses.replace(BEGUN, cause="failed"), dataclasses.replace(BEGUN, cause="failed", saved_step=20)]
    assert failures_without_a_checkpoint([*starts, dataclasses.replace(BEGUN, cause="failed", first_step=20, saved_step=20)]) == 1


def test_a_node_is_excluded_after_some_failures_and_at_once_after_a_preflight() -> None:
    hung = dataclasses.replace(BEGUN, cause="hung", suspects=("n2",))
    assert excluded_nodes([hung], 2) == ()
    assert excluded_nodes([hung, BEGUN, hung], 2) == ("n2",)
    assert excluded_nodes([dataclasses.replace(hung, cause="failed the preflight")], 2) == ("n2",)
    assert "without n2" in decide("run", [hung, hung], 9, RecoveryConfig(same_step_failures=9)).message


def test_a_preflight_that_no_other_nodes_would_pass_ends_the_job() -> None:
    failed = dataclasses.replace(BEGUN, cause="failed the preflight", code=1)
    again = decide("run", [dataclasses.replace(failed, suspects=("n2",))], 4, LIMITS)
    assert again.again and again.message == "queued again after 0 restarts after its preflight, without n2"
    ended = decide("run", [dataclasses.replace(failed, note="2 of 2 nodes fail the preflight")], 4, LIMITS)
    assert (ended.again, ended.code) == (False, 1)
    assert ended.message == "run: 2 of 2 nodes fail the preflight; it is not started again"
    # Nodes are measured before the run does anything: no sign of a crash loop.
    assert failures_without_a_checkpoint([failed, failed]) == 0


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        ({"finished": True, "code": 143}, "finished"),
        ({"code": 0}, "failed"),
        ({"code": 75}, "stopped"),
        ({"stopped": True, "code": 137}, "stopped"),
        ({"diverged": True, "code": 137}, "diverged"),
        ({"code": 3}, "diverged"),
        ({"hung": True, "code": 137}, "hung"),
        ({"cancelled": True, "code": 75}, "cancelled"),
        ({"code": 2}, "bad input"),
    ],
)
def test_the_cause_of_an_end(seen: dict[str, object], cause: str) -> None:
    nothing = {"finished": False, "hung": False, "stopped": False, "cancelled": False, "diverged": False}
    assert cause_of(**{**nothing, **seen}) == cause  # type: ignore[arg-type]
