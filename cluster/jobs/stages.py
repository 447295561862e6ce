"""The stages that a cluster runs: the command of each, and what a job must know of its config."""

from dataclasses import dataclass

from mose.errors import MoseError


@dataclass(frozen=True)
class Stage:
    """One stage's command."""

    module: str
    """Module that `python -m` runs, e.g. `finetune.cli`."""
    command: str
    """Its subcommand."""
    summary: str
    steps_key: str = ""
    """Key of a training run's number of steps; empty for other stages."""
    has_tasks: bool = False
    """Whether `num_tasks` in its config divides it over array elements."""
    words: tuple[str, ...] = ()
    """Options that make it this part of its command."""
    is_positional: bool = False
    """Whether its first word is a folder and not --config FILE."""

    @property
    def program(self) -> str:
        """The installed command, e.g. `mose-data`."""
        return PROGRAMS[self.module]

    @property
    def is_training(self) -> bool:
        """Whether its ranks save checkpoints, and come back from them."""
        return bool(self.steps_key)


def _dedup(phase: str) -> Stage:
    summary = f"The phase {phase} of the search for near-duplicates."
    # A chain of near-duplicates may run through the whole input, so that groups are found by one task.
    return Stage("data_prep.cli", "dedup", summary, has_tasks=phase != "groups", words=("--phase", phase))


PROGRAMS = {"data_prep.cli": "mose-data", "pretrain.cli": "mose-pretrain", "finetune.cli": "mose-finetune"}
STAGES = {
    "pretrain": Stage("pretrain.cli", "train", "Pre-train on many nodes.", steps_key="max_steps"),
    "pack": Stage("data_prep.cli", "pack", "Pack a data set by an array of tasks, and merge it.", has_tasks=True),
    "group": Stage("data_prep.cli", "group", "Group The Stack v2's rows by repository."),
    "fetch": Stage("data_prep.cli", "fetch", "Fetch bodies of files, by an array of tasks.", has_tasks=True),
    "translate": Stage("data_prep.cli", "translate", "Translate functions between programming languages.", has_tasks=True),
    "dedup": Stage("data_prep.cli", "dedup", "Find near-duplicates, or complete and report what its phases found."),
    **{f"dedup-{phase}": _dedup(phase) for phase in ("signatures", "bands", "verify", "groups", "cut")},
    "export": Stage("pretrain.cli", "export", "Convert a run's last checkpoint.", is_positional=True),
    "retrieval": Stage("finetune.cli", "retrieval", "Fine-tune for retrieval.", steps_key="steps"),
    "classification": Stage("finetune.cli", "classification", "Fine-tune for classification.", steps_key="steps"),
    "evaluate": Stage("finetune.cli", "evaluate", "Score every exit."),
}


def stage_named(name: str) -> Stage:
    """A stage by its name.

    Raises:
        MoseError: there is none.
    """
    if name not in STAGES:
        raise MoseError(f"stage: {name!r}, expected one of {', '.join(STAGES)}")
    return STAGES[name]
