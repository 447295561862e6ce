"""The commands of a study and what each needs: the data, and per seed the runs ("arms") that are compared.

An arm is one model: pre-trained or random weights, fine-tuned and scored. Its files lie in OUTPUT/seed_S/ARM.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.science.study import ABLATIONS, ICC_NSP, PRETRAINED, SELF_DISTILLED, SINGLE_EXIT, StudyConfig, file_stem
from mose.config import require
from mose.dataset.manifest import Manifest, read_manifest
from mose.errors import MoseError, first_line
from mose.files.yaml_file import read_yaml

ICC, NSP, RANDOM = "icc", "nsp", "random"
TOKENIZER, PACK, PACK_NSP, PAIRS = "tokenizer", "data", "data_nsp", "pairs"
HELD_OUT, SCORES = "held_out.json", "scores"
ABLATION_FOLDER = Path("configs/ablations")


@dataclass(frozen=True)
class Job:
    """One command. `words` is called when all that it needs is done, since some numbers depend on the data."""

    name: str
    result: Path
    """The file or folder that it writes."""
    needs: tuple[str, ...]
    words: Callable[[], list[str]]
    resumes: bool = False
    """Whether the command continues an unfinished result; otherwise that is removed before a second start."""
    gate: Callable[[], str] | None = None
    """Gives the reason why the command must not run, or an empty text; asked when all that the job needs is done."""


def jobs_of(study: StudyConfig) -> list[Job]:
    """All commands of a study, seed by seed, so that a study that is cut short has whole seeds.

    Raises:
        MoseError: a config of the recipe is missing or is not YAML, or the study is shorter than the recipe's warm-up.
    """
    plan = Plan(study)
    jobs = plan.data()
    for seed in study.seeds:
        jobs += plan.seed(seed)
    return jobs


def read_recipe(study: StudyConfig, name: str) -> dict[str, Any]:
    """A config of the recipe as plain values.

    Raises:
        MoseError: it is missing or is not YAML.
    """
    path = study.recipe_file(name)
    try:
        values = read_yaml(path)
    except OSError as error:
        raise MoseError(f"recipe: {path}: {first_line(error)}; expected a config such as configs/quickstart has") from None
    return values if isinstance(values, dict) else {}


def recipe_exits(study: StudyConfig) -> list[int]:
    """The layers of the recipe's exits, shallow to deep.

    Raises:
        MoseError: the recipe's pretrain.yaml does not name them.
    """
    exits = read_recipe(study, "pretrain").get("model", {}).get("exit_layers")
    if not exits:
        raise MoseError(f"recipe: {study.recipe_file('pretrain')}: model.exit_layers: not given, expected the list of exits")
    return sorted(exits)


def at_chance(held_out: Path) -> str:
    """Why a model's in-context accuracy counts as chance at its deepest exit, or an empty text.

    The deepest exit alone is asked: with every exit as a further try, chance would pass the gate more often than in 1 of 40 runs.
    """
    report = json.loads(held_out.read_text("utf-8"))
    name, values = max(report["exits"].items())
    interval, majority = values.get("icc_interval"), report.get("icc_majority_rate")
    if interval is None or majority is None:
        return f"{held_out}: no in-context accuracy; the recipe's pre-training has another task"
    if interval[0] > majority:
        return ""
    return (
        f"in-context accuracy is at chance: exit {name} {values['icc_accuracy']:.3f} [{interval[0]:.3f}, {interval[1]:.3f}], "
        f"the more frequent label has {majority:.3f}"
    )


class Plan:
    """Makes the jobs of a study."""

    def __init__(self, study: StudyConfig):
        self.study, self.folder = study, study.folder
        self.exits = recipe_exits(study)
        self.pretrain = read_recipe(study, "pretrain")
        warmups = {
            "pretrain_steps": self.pretrain.get("schedule", {}).get("warmup_steps", 0),
            "retrieval_steps": read_recipe(study, "retrieval").get("warmup_steps", 0),
        }
        for name, warmup in warmups.items():
            steps = getattr(study, name)
            require(not steps or steps > warmup, f"{name}: {steps}, expected more than the recipe's warm-up of {warmup} steps")

    def data(self) -> list[Job]:
        """Tokenizer, packed rows and pairs; rows of two segments where NSP is compared."""
        pack = ["--tokenizer", str(self.folder / TOKENIZER)]
        jobs = [
            self._recipe_job(TOKENIZER, "train-tokenizer", "tokenizer", TOKENIZER, (), []),
            self._recipe_job(PACK, "pack", "pack", PACK, (TOKENIZER,), pack, resumes=True),
            self._recipe_job(PAIRS, "pairs", "pairs", "pairs.parquet", (), []),
        ]
        if ICC_NSP in self.study.parts:
            length = int(read_recipe(self.study, "pack").get("packing", {}).get("sequence_length", 2048))
            # Two segments fill a row, as the paper's would: <sep> a <sep> b <cls> leaves (T - 3) / 2 tokens for each.
            nsp = [*pack, "--packing.mode", "nsp", "--packing.piece_tokens", str((length - 3) // 2)]
            jobs.append(self._recipe_job(PACK_NSP, "pack", "pack", PACK_NSP, (TOKENIZER,), nsp, resumes=True))
        return jobs

    def _recipe_job(
        self, name: str, command: str, recipe: str, result: str, needs: tuple[str, ...], more: list[str], resumes: bool = False
    ) -> Job:
        path = self.folder / result
        words = ["mose-data", command, "--config", str(self.study.recipe_file(recipe)), "--output", str(path), *more]
        return Job(name, path, needs, lambda: words, resumes)

    def seed(self, seed: int) -> list[Job]:
        """The arms of one seed; the pre-trained model comes first, because every part is compared with it."""
        arms = Arms(self, seed)
        parts = self.study.parts
        jobs = [*arms.pretrained(ICC), *arms.tuned(ICC, arms.checkpoint(ICC))]
        if PRETRAINED in parts:
            jobs += arms.tuned(RANDOM, arms.checkpoint(ICC), ["--from_random", "true"])
        if SELF_DISTILLED in parts:
            jobs += [job for layer in self.exits for job in arms.single_exit(layer)]
        if ICC_NSP in parts:
            gate = f"seed_{seed}/{ICC}/held_out"

            def closed() -> str:
                return at_chance(self.folder / f"seed_{seed}" / ICC / HELD_OUT)

            nsp = [*arms.pretrained(NSP), *arms.tuned(NSP, arms.checkpoint(NSP))]
            jobs += [replace(job, needs=(*job.needs, gate), gate=closed) for job in nsp]
        if ABLATIONS in parts:
            for name in self.study.ablations:
                for arm in ablation_arms(name, self.exits):
                    jobs += [*arms.pretrained(arm), *arms.tuned(arm, arms.checkpoint(arm))]
        return jobs


def ablation_arms(name: str, exits: Sequence[int]) -> list[str]:
    """The arms of an ablation: one, or for `single_exit` one per exit."""
    return [f"alone_{layer:02d}" for layer in exits] if name == SINGLE_EXIT else [name]


def cut_arm(layer: int) -> str:
    """The arm in which the pre-trained model is cut at `layer` and fine-tuned with that exit's loss alone."""
    return f"cut_{layer:02d}"


class Arms:
    """Makes the jobs of one seed's arms."""

    def __init__(self, plan: Plan, seed: int):
        self.plan, self.study, self.seed = plan, plan.study, seed
        self.folder = plan.folder / f"seed_{seed}"

    def checkpoint(self, arm: str) -> Path:
        """The arm's converted checkpoint before fine-tuning."""
        return self.folder / arm / "pretrained"

    def name(self, arm: str, step: str) -> str:
        """The job's name."""
        return f"seed_{self.seed}/{arm}/{step}"

    def pretrained(self, arm: str) -> list[Job]:
        """Pre-training, conversion and held-out losses of an arm."""
        folder, data = self.folder / arm, self.plan.folder / PACK
        run, checkpoint, held_out = folder / "run", self.checkpoint(arm), folder / HELD_OUT
        rows = (PACK, PACK_NSP) if arm == NSP else (PACK,)
        export = ["mose-pretrain", "export", str(run), "--output", str(checkpoint)]
        # All arms are scored on the same rows and masks, those of in-context classification.
        score = ["mose-pretrain", "evaluate", "--checkpoint", str(checkpoint), "--dataset", str(data)]
        score += ["--max-rows", str(self.study.held_out_rows), "--output", str(held_out)]
        jobs = [
            Job(self.name(arm, "train"), run, rows, lambda: self._train(arm, run), resumes=True),
            Job(self.name(arm, "export"), checkpoint, (self.name(arm, "train"),), lambda: export),
            Job(self.name(arm, "held_out"), held_out, (self.name(arm, "export"),), lambda: score),
        ]
        if arm == NSP:
            own = ["mose-pretrain", "evaluate", "--checkpoint", str(checkpoint), "--dataset", str(self.plan.folder / PACK_NSP)]
            own += ["--max-rows", str(self.study.held_out_rows), "--output", str(folder / "held_out_nsp.json")]
            needs = (self.name(arm, "export"),)
            jobs.append(Job(self.name(arm, "held_out_nsp"), folder / "held_out_nsp.json", needs, lambda: own))
        return jobs

    def _train(self, arm: str, run: Path) -> list[str]:
        words = ["mose-pretrain", "train", "--config", str(self.study.recipe_file("pretrain"))]
        # The model's shape and the batch are options, because a second file that lies over the recipe's is the ablation's own.
        if arm == NSP or (not arm.startswith("alone_") and arm != ICC):
            words += ["--config", str(ABLATION_FOLDER / f"{arm}.yaml")]
        words += ["--data.dataset", str(self.plan.folder / (PACK_NSP if arm == NSP else PACK))]
        words += ["--output", str(run), "--seed", str(self.seed)]
        if arm.startswith("alone_"):
            layer = int(arm.removeprefix("alone_"))
            words += ["--model.num_layers", str(layer), "--model.exit_layers", f"[{layer}]"]
            # Only the deepest exit stands behind the final norm; an earlier one trained alone keeps its raw state.
            words += ["--model.norm_after_last_layer", "true" if layer == self.plan.exits[-1] else "false"]
        rows, steps = self._rows_and_steps(arm)
        words += ["--batch.global_rows", str(rows), *schedule_options(self.plan.pretrain, steps)]
        every = max(1, steps // 4)
        words += ["--intervals.checkpoint_every_steps", str(every), "--intervals.keep_last_checkpoints", "1"]
        return [*words, "--intervals.validate_every_steps", "0", "--intervals.validation_rows", "0"]

    def _rows_and_steps(self, arm: str) -> tuple[int, int]:
        rows = int(self.plan.pretrain.get("batch", {}).get("global_rows", 2048))
        steps = self.study.pretrain_steps or int(self.plan.pretrain.get("max_steps", 0))
        if steps < 1:
            raise MoseError(f"recipe: {self.study.recipe_file('pretrain')}: max_steps: not given, expected 1 or more")
        if arm != NSP:
            return rows, steps
        return equal_tokens(rows, steps, *(mean_tokens(read_manifest(self.plan.folder / name)) for name in (PACK, PACK_NSP)))

    def tuned(self, arm: str, checkpoint: Path, more: Sequence[str] = ()) -> list[Job]:
        """Fine-tuning of a checkpoint and its scores; the arm's own checkpoint or another arm's."""
        source = self.name(checkpoint.parent.name, "export")
        folder, pairs = self.folder / arm, self.plan.folder / "pairs.parquet"
        tuned, name = folder / "retrieval", self.name(arm, "retrieval")
        words = ["mose-finetune", "retrieval", "--config", str(self.study.recipe_file("retrieval"))]
        words += ["--checkpoint", str(checkpoint), "--pairs", str(pairs), "--output", str(tuned), "--seed", str(self.seed)]
        words += ["--steps", str(self.study.retrieval_steps)] if self.study.retrieval_steps else []
        jobs = [Job(name, tuned, (source, PAIRS), lambda: [*words, *more])]
        return jobs + [self._scores(arm, name, file) for file in ("", *self.study.evaluation_files)]

    def _scores(self, arm: str, needs: str, file: str) -> Job:
        folder = self.folder / arm / scores_name(file)
        words = ["mose-finetune", "evaluate", "--config", str(self.study.recipe_file("evaluate"))]
        words += ["--checkpoint", str(self.folder / arm / "retrieval" / "checkpoint"), "--output", str(folder)]
        # Queries and candidates do not depend on the study's seed, so that differences are paired over all seeds.
        words += ["--pairs", file or str(self.plan.folder / "pairs.parquet"), "--split", "held_out", "--seed", "0"]
        words += ["--max_queries_per_repository", str(self._queries(file))]
        # The bag of embeddings is the same for every arm, and takes longer than all exits together.
        is_first = not file and arm == ICC and self.seed == self.study.seeds[0]
        words += [] if is_first else ["--bag_steps", "0"]
        return Job(self.name(arm, scores_name(file)), folder, (needs,), lambda: words)

    def _queries(self, file: str) -> int:
        return self.study.queries_per_file_repository if file else self.study.queries_per_repository

    def single_exit(self, layer: int) -> list[Job]:
        """The pre-trained model cut at one exit, and fine-tuned with that exit's loss alone (paper section 6.3)."""
        arm = cut_arm(layer)
        words = ["mose-pretrain", "export", str(self.folder / ICC / "run"), "--exit", str(layer)]
        words += ["--output", str(self.checkpoint(arm))]
        cut = Job(self.name(arm, "export"), self.checkpoint(arm), (self.name(ICC, "train"),), lambda: words)
        return [cut, *self.tuned(arm, self.checkpoint(arm))]


def scores_name(file: str) -> str:
    """Folder of an arm's scores on an evaluation file; on the held-out pairs where `file` is empty."""
    return f"{SCORES}_{file_stem(file)}" if file else SCORES


def mean_tokens(manifest: Manifest) -> float:
    """Mean real tokens per training row."""
    return manifest.tokens("train") / max(1, manifest.rows("train"))


def equal_tokens(rows: int, steps: int, tokens: float, other_tokens: float) -> tuple[int, int]:
    """Rows per step and steps with which rows of `other_tokens` come to the real tokens of `steps` steps of `rows` rows.

    Rows per step change first, so that both runs take about as many optimiser steps; the steps take what rounding leaves.
    """
    other_rows = max(1, round(rows * tokens / other_tokens))
    return other_rows, max(1, round(steps * rows * tokens / (other_rows * other_tokens)))


def schedule_options(pretrain: dict[str, Any], steps: int) -> list[str]:
    """Options that give a run of the recipe another number of steps; its schedule is stretched, its warm-up kept."""
    schedule, before = pretrain.get("schedule", {}), int(pretrain.get("max_steps", steps))
    words = ["--max_steps", str(steps)]
    if schedule.get("zero_at_step"):
        words += ["--schedule.zero_at_step", str(round(schedule["zero_at_step"] * steps / before))]
    if schedule.get("milestones"):
        words += ["--schedule.milestones", json.dumps([round(step * steps / before) for step in schedule["milestones"]])]
    return words
