"""Covers the study: the order of its commands, continuing, the gate, the page, and all of it for real at a tiny size."""

import json
import re
import subprocess
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.science.__main__ import run_study
from benchmarks.science.jobs import equal_tokens, jobs_of, schedule_options
from benchmarks.science.page import write_page
from benchmarks.science.study import ICC_NSP, PARTS, PRETRAINED, SELF_DISTILLED, StudyConfig
from finetune.evaluation.metrics import Score
from finetune.evaluation.paired import difference_over_seeds
from finetune.evaluation.results import Evaluation, ExitScores, write_evaluation
from mose.command import run_command
from mose.dataset.manifest import Manifest, ShardEntry, write_manifest
from mose.errors import MoseError
from mose.run_directory import EVALUATION_NAME
from tests.commands import command_line, environment

ROOT = Path(__file__).parents[2]
REPOSITORIES = [f"repository_{number}" for number in range(6)]
SOURCES = ("tokenizer", "pack", "pairs")


def option(words: Sequence[str], name: str) -> str:
    return words[list(words).index(name) + 1]


class MadeUp:
    """Stands in for the commands: writes results that look like theirs; `fail` names a part of a job's log that fails."""

    def __init__(self, icc_accuracy: float = 0.7, fail: str = ""):
        self.icc_accuracy, self.fail, self.lines = icc_accuracy, fail, list[list[str]]()

    def __call__(self, words: Sequence[str], log: Path) -> int:
        self.lines.append(list(words))
        log.write_text("what it printed\nbad luck\n")
        if self.fail and self.fail in log.name:
            return 1
        output = Path(option(words, "--output"))
        kind = " ".join(words[:2])
        if kind == "mose-pretrain evaluate":
            self._held_out(output, "nsp" if output.name.endswith("_nsp.json") else "icc")
        elif kind == "mose-finetune evaluate":
            self._scores(output)
        elif kind == "mose-data pairs":
            output.write_text("pairs")
        else:
            output.mkdir(parents=True, exist_ok=True)
            if kind == "mose-data pack":
                write_manifest(output, made_manifest(tokens=100 if "nsp" in words else 300))
            (output / "metrics.jsonl").write_text(json.dumps({"consumed_tokens": 4_000_000}) + "\n")
        return 0

    def _held_out(self, path: Path, task: str) -> None:
        low, high = self.icc_accuracy - 0.02, self.icc_accuracy + 0.02
        row = {"mlm": 4.0, f"{task}_accuracy": self.icc_accuracy, f"{task}_interval": [low, high]}
        report = {
            "exits": {"01": row, "02": row},
            "unigram_cross_entropy": 5.0,
            "left_bigram_cross_entropy": 4.0,
            f"{task}_majority_rate": 0.5,
            "rows": 8,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report))

    def _scores(self, folder: Path) -> None:
        arm, exits = folder.parent.name, ["01", "02"]
        exits = [arm[-2:]] if arm.startswith(("cut", "alone")) else exits
        write_evaluation(folder, made_evaluation({name: [1, 2, 4] if arm == "icc" else [2, 4, 8] for name in exits}))


def made_manifest(tokens: int) -> Manifest:
    shard = ShardEntry("a.tar", 10, 10 * tokens, 0, "", "a.npy", "", "", "")
    return Manifest("0" * 16, "0" * 16, 320, 512, {"train": (shard,), "held_out": (shard,)})


def made_evaluation(ranks: dict[str, list[int]]) -> Evaluation:
    ranks = {name: values * len(REPOSITORIES) for name, values in ranks.items()}
    scores = {
        name: ExitScores(int(name), 1000, 0.1, *(Score(float(np.mean(1 / np.array(values))), (0.0, 1.0)),) * 2)
        for name, values in ranks.items()
    }
    names = [name for name in REPOSITORIES for _ in range(3)]
    return Evaluation("c", ("p",), "held_out", 0, 18, 6, 20, 10, 30, 0.1, scores, {}, list(range(18)), names, ranks)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of two exits whose commands take seconds."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    repositories = make_repositories(tmp_path / "repositories")
    common = {"sources": {"directories": [str(repositories)]}, "held_out_fraction": 0.3, "seed": 1}
    pretrain = yaml.safe_load((ROOT / "configs" / "quickstart" / "pretrain.yaml").read_text("utf-8"))
    pretrain["model"] |= {"width": 16, "feed_forward_width": 32, "num_layers": 2, "exit_layers": [1, 2], "max_length": 128}
    pretrain |= {"max_steps": 4, "schedule": {**pretrain["schedule"], "zero_at_step": 4, "warmup_steps": 1}}
    configs = {
        "tokenizer": {"output": "-", "vocabulary_size": 400, **common},
        "pack": {
            "output": "-",
            "tokenizer": "-",
            "num_tasks": 1,
            "num_workers": 1,
            "packing": {"sequence_length": 128, "piece_tokens": 30},
            **common,
        },
        "pairs": {"output": "-", **common},
        "pretrain": pretrain,
        "retrieval": {"checkpoint": "-", "pairs": "-", "output": "-", "steps": 2, "batch_pairs": 8, "max_length": 96},
        "evaluate": {"checkpoint": "-", "pairs": "-", "output": "-", "distractors": 9, "bag_steps": 2, "max_length": 96},
    }
    for name, values in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder


def make_repositories(folder: Path, count: int = 16) -> Path:
    """Small Python repositories, each with documented functions about a noun of its own."""
    verbs = ("read", "write", "parse", "close", "count", "merge")
    for number, verb in ((number, verb) for number in range(count) for verb in verbs):
        noun = f"table_{number}"
        text = f'''
        def {verb}_{noun}(path, {noun}, limit={number}):
            """{verb.title()} the {noun} found at a path, up to a limit of {number} {verb} calls."""
            result = []
            for item in {noun}.{verb}(path):
                result.append((item, "{verb}", "{noun}"))
            return result[:limit]
        '''
        path = folder / f"repository_{number:02d}" / f"{verb}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    return folder


def study_of(recipe: Path, **changes: object) -> StudyConfig:
    values = {"output": str(recipe.parent / "study"), "recipe": str(recipe), "seeds": (0, 1), "workers": 1} | changes
    return StudyConfig(**values)  # type: ignore[arg-type]


def test_every_job_comes_after_what_it_needs_and_has_a_name_of_its_own(recipe: Path) -> None:
    jobs = jobs_of(study_of(recipe))
    seen: set[str] = set()
    for job in jobs:
        assert set(job.needs) <= seen
        assert job.name not in seen
        seen.add(job.name)
    assert {"seed_0/icc/train", "seed_1/nsp/scores", "seed_0/cut_02/retrieval", "seed_1/alone_01/held_out"} <= seen
    small = {job.name for job in jobs_of(study_of(recipe, parts=(SELF_DISTILLED,), seeds=(7,)))}
    assert "data_nsp" not in small
    # An averaging start is a bag of tokens before any training, so it is a second control.
    assert "seed_0/start/retrieval" in seen
    pretrain = recipe / "pretrain.yaml"
    pretrain.write_text(pretrain.read_text("utf-8").replace("averaging", "normal"), "utf-8")
    assert not any("/start/" in job.name for job in jobs_of(study_of(recipe)))


def test_a_finished_study_runs_nothing_again_and_a_cut_one_continues(recipe: Path) -> None:
    study = study_of(recipe)
    commands = MadeUp(fail="seed_0__random__retrieval")
    outcome = run_study(study, commands)
    assert outcome.failed == {"seed_0/random/retrieval": "exit code 1: bad luck"}
    assert outcome.waiting == {"seed_0/random/scores": "needs seed_0/random/retrieval"}
    commands = MadeUp()
    assert not run_study(study, commands).failed
    assert [words[1] for words in commands.lines] == ["retrieval", "evaluate"]
    commands = MadeUp()
    outcome = run_study(study, commands)
    assert commands.lines == [] and not outcome.waiting
    commands = MadeUp()
    run_study(study_of(recipe, seeds=(0, 1, 2)), commands)
    assert commands.lines and all("seed_2" in " ".join(words) for words in commands.lines)


@pytest.mark.parametrize(("result", "kept"), [("icc/run", True), ("icc/retrieval", False)])
def test_an_unfinished_result_is_removed_unless_its_command_continues_it(recipe: Path, result: str, kept: bool) -> None:
    study = study_of(recipe, seeds=(0,), parts=(PRETRAINED,))
    (study.folder / "seed_0" / result).mkdir(parents=True)
    (study.folder / "seed_0" / result / "half").write_text("")
    run_study(study, MadeUp())
    assert (study.folder / "seed_0" / result / "half").exists() == kept


def test_a_changed_recipe_is_refused_by_name(recipe: Path) -> None:
    study = study_of(recipe, seeds=(0,), parts=(PRETRAINED,))
    run_study(study, MadeUp())
    path = recipe / "retrieval.yaml"
    path.write_text(path.read_text() + "learning_rate: 2.0e-3\n")
    with pytest.raises(MoseError, match=r"jobs/seed_0__icc__retrieval.json: .* other settings"):
        run_study(study, MadeUp())


def test_no_command_starts_when_the_time_is_up(recipe: Path) -> None:
    commands = MadeUp()
    outcome = run_study(study_of(recipe, minutes=1e-9), commands)
    assert commands.lines == []
    assert set(outcome.waiting.values()) == {"the time is up"}


def test_a_seed_at_chance_stops_icc_against_nsp_and_the_page_says_so(recipe: Path, tmp_path: Path) -> None:
    study, commands = study_of(recipe), MadeUp(icc_accuracy=0.51)
    outcome = run_study(study, commands)
    assert {name.split("/")[1] for name in outcome.stopped} == {"nsp"}
    assert not any("/nsp/" in " ".join(words) for words in commands.lines)
    assert not outcome.failed and not outcome.waiting
    write_page(study, tmp_path / "page.md", tmp_path / "images")
    text = (tmp_path / "page.md").read_text()
    assert "**Stopped at the gate** for 2 of 2 seeds (seed 0: in-context accuracy is at chance: exit 02 0.510" in text
    assert "seed 1: **gate closed**" in text
    assert "Not finished" not in text


def test_the_page_has_every_part_with_its_numbers_and_its_picture(recipe: Path, tmp_path: Path) -> None:
    study = study_of(recipe, evaluation_files=("other/java.jsonl.gz",))
    run_study(study, MadeUp())
    write_page(study, tmp_path / "page.md", tmp_path / "images")
    text = (tmp_path / "page.md").read_text()
    # Ranks 1, 2, 4 against 2, 4, 8: reciprocal ranks .583 against .292, hits 1/3 against 0.
    assert "| 01 | 2 | 0.583 (0.583 to 0.583) | 0.292 (0.292 to 0.292) | +.292 [+.292, +.292] | +.333 [+.333, +.333] |" in text
    assert "better at exits 01, 02 (MRR)" in text
    assert "Equal weights of the exits against pre-trained with ICC; held-out repositories: worse at exits 01, 02" in text
    assert "Equal weights of the exits against pre-trained with ICC; `java`: " in text
    assert "`java`: 18 queries of 6 repositories" in text
    assert "gate open" in text and "Not run" not in text and "Not finished" not in text
    for part in PARTS:
        assert (tmp_path / "images" / f"science_{part}.svg").stat().st_size > 1000
        assert f"images/science_{part}.svg" in text


def test_a_page_of_a_cut_study_says_how_much_is_missing(recipe: Path, tmp_path: Path) -> None:
    study = study_of(recipe)
    run_study(study, MadeUp())
    (study.folder / "jobs" / "seed_1__random__scores.json").unlink()
    write_page(study, tmp_path / "page.md", tmp_path / "images")
    assert "**Not finished**: 1 commands have not run yet." in (tmp_path / "page.md").read_text()


def test_nsp_sees_the_tokens_of_icc_in_about_as_many_steps() -> None:
    rows, steps = equal_tokens(8, 2100, 460.0, 210.0)
    assert rows == 18
    assert rows * steps * 210.0 == pytest.approx(8 * 2100 * 460.0, rel=1e-3)
    assert abs(steps - 2100) < 0.05 * 2100


def test_a_shorter_run_stretches_its_schedule() -> None:
    recipe = {"max_steps": 2000, "schedule": {"zero_at_step": 2000, "milestones": [500, 1000], "warmup_steps": 60}}
    words = schedule_options(recipe, 100)
    assert option(words, "--max_steps") == option(words, "--schedule.zero_at_step") == "100"
    assert option(words, "--schedule.milestones") == "[25, 50]"
    assert "--schedule.warmup_steps" not in words


def test_evaluations_of_other_queries_are_not_paired() -> None:
    first, second = made_evaluation({"01": [1, 2, 4]}), made_evaluation({"01": [1, 2, 4]})
    second.query_places[0] = 99
    with pytest.raises(MoseError, match="other queries"):
        difference_over_seeds([first], [second], "01", "mrr")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ("more",)}, "parts: 'more', expected some of pretrained_vs_random"),
        ({"seeds": (1, 1)}, "seeds: .* expected different numbers"),
        ({"seeds": ()}, "seeds: .* one or more"),
        ({"ablations": ("other",)}, "ablations: 'other'"),
        ({"workers": 0}, "workers: 0, expected 1 or more"),
        ({"evaluation_files": ("a/x.parquet", "b/x.parquet")}, "evaluation_files: x, x, expected files of different names"),
    ],
)
def test_a_bad_study_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(MoseError, match=message):
        StudyConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pretrain_steps", "retrieval_steps"])
def test_a_study_within_the_warm_up_is_refused(name: str) -> None:
    with pytest.raises(MoseError, match=f"{name}: 12, expected more than the recipe's warm-up of"):
        jobs_of(StudyConfig(recipe=str(ROOT / "configs" / "quickstart"), **{name: 12}))  # type: ignore[arg-type]


def test_a_recipe_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"recipe: .*pretrain.yaml: .*expected a config"):
        jobs_of(StudyConfig(recipe=str(tmp_path)))


@pytest.mark.parametrize("name", ["small", "full"])
def test_the_configs_of_the_project_plan(name: str) -> None:
    config = ROOT / "configs" / "science" / f"{name}.yaml"
    line = command_line("benchmarks.science", "run", "--config", config, "--plan")
    line[2] = "benchmarks.science"
    shown = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True).stdout
    assert "seed_2/icc/scores <- seed_2/icc/retrieval" in shown
    assert "Duration" in config.read_text("utf-8")


def in_process(words: Sequence[str], log: Path) -> int:
    """Run a command in this process, which has loaded torch already; training starts process groups, so it gets its own."""
    from data_prep.cli import commands as data
    from finetune.cli import commands as finetune
    from pretrain.cli import commands as pretrain

    packages: dict[str, tuple[str, Callable[[], dict[str, object]]]] = {
        "mose-data": ("data_prep", data),  # type: ignore[dict-item]
        "mose-pretrain": ("pretrain", pretrain),  # type: ignore[dict-item]
        "mose-finetune": ("finetune", finetune),  # type: ignore[dict-item]
    }
    package, commands = packages[words[0]]
    if words[1] == "train":
        done = subprocess.run(
            command_line(package, *words[1:]), env=environment(), capture_output=True, text=True, check=False, cwd=ROOT
        )
        log.write_text(done.stdout + done.stderr)
        return done.returncode
    log.write_text("")
    return run_command(words[0], "", commands(), [*words[1:], "--debug"])  # type: ignore[arg-type]


def test_all_commands_run_for_real_at_a_tiny_size(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("benchmarks.science.jobs.at_chance", lambda path: "")
    study = study_of(recipe, seeds=(3,), parts=(PRETRAINED, SELF_DISTILLED, ICC_NSP), held_out_rows=8)
    outcome = run_study(study, in_process)
    assert not outcome.failed and not outcome.waiting, outcome
    tokens = [
        json.loads((study.folder / "seed_3" / arm / "run" / "metrics.jsonl").read_text().splitlines()[-1])["consumed_tokens"]
        for arm in ("icc", "nsp")
    ]
    assert tokens[1] == pytest.approx(tokens[0], rel=0.3)
    assert (
        "bag of embeddings" in json.loads((study.folder / "seed_3" / "icc" / "scores" / EVALUATION_NAME).read_text())["baselines"]
    )
    write_page(study, tmp_path / "page.md", tmp_path / "images")
    text = (tmp_path / "page.md").read_text()
    # One table per part, and one more for the second control.
    assert len(re.findall(r"^\| 0[12] \| 1 \|", text, re.M)) == 2 * (len(study.parts) + 1)
