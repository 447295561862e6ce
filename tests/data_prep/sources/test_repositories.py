"""The held-out split: by repository, stable, of about the share that was asked for."""

import math

from data_prep.sources.repositories import split_of


def test_the_share_is_about_what_was_asked_for() -> None:
    held_out = sum(split_of(f"owner/repository-{i}", 0, 0.1) == "held_out" for i in range(20_000))
    assert abs(held_out - 2000) < 5 * math.sqrt(20_000 * 0.1 * 0.9)


def test_none_and_all() -> None:
    assert {split_of(f"r{i}", 0, 0.0) for i in range(1000)} == {"train"}
    assert {split_of(f"r{i}", 0, 1.0) for i in range(1000)} == {"held_out"}


def test_another_seed_holds_out_others() -> None:
    first, second = ([split_of(f"r{i}", seed, 0.5) for i in range(1000)] for seed in (0, 1))
    assert 350 < sum(a != b for a, b in zip(first, second, strict=True)) < 650


def test_a_second_copy_of_a_repository_goes_with_the_first() -> None:
    assert all(split_of(f"r{i}", 3, 0.5) == split_of(f"r{i}#2", 3, 0.5) for i in range(200))
    assert any(split_of(f"r{i}", 3, 0.5) != split_of(f"r{i}2", 3, 0.5) for i in range(200))
