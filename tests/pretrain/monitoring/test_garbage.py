"""The garbage collector runs after every n-th step and at no other time; after the block it is as it was."""

import gc

import pytest

from pretrain.monitoring.garbage import collected_between_steps


def test_collections_fall_on_every_nth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    original = gc.collect
    monkeypatch.setattr(gc, "collect", lambda: happened.append("collection") or original())  # type: ignore[func-returns-value]
    with collected_between_steps(lambda: happened.append("step"), every_steps=2) as after_step:
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
        for _ in range(5):
            after_step()
    assert happened == ["collection", "step", "step", "collection", "step", "step", "collection", "step"]
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)


def test_an_error_inside_switches_it_on_again() -> None:
    with pytest.raises(KeyError), collected_between_steps(lambda: None):
        raise KeyError
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)
