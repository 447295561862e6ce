"""Covers which values of the parallel section matter when a run resumes; older checkpoints, which lack some, resume as before."""

import dataclasses
from pathlib import Path

from pretrain.config.identity import changes_between, check_changes, config_values
from pretrain.config.run import ParallelConfig, PretrainConfig

NEWER = ("parallel.sequence_parallel", "parallel.compile")


def values(**parallel: object) -> dict[str, object]:
    fields = ParallelConfig(**parallel)  # type: ignore[arg-type]
    return config_values(dataclasses.replace(PretrainConfig(), parallel=fields), "data", 4)


def test_activation_checkpointing_changes_no_number_and_is_free_to_change() -> None:
    assert changes_between(values(), values(activation_checkpointing="full")) == ()


def test_sequence_parallelism_and_compilation_are_layout() -> None:
    now = values(tensor_parallel_size=2, sequence_parallel=True, compile=True)
    changes = check_changes(Path("checkpoint"), values(tensor_parallel_size=2), now, ())
    assert [change.field for change in changes] == sorted(NEWER)
    assert all(change.is_layout for change in changes)


def test_a_checkpoint_made_before_these_fields_resumes() -> None:
    older = {name: value for name, value in values().items() if name not in NEWER}
    assert check_changes(Path("checkpoint"), older, values(), ()) == ()
