"""Writes docs/science.md from a study's results: what the paper says, what was measured, at which scale."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.science.jobs import HELD_OUT, ICC, NSP, RANDOM, START, jobs_of, read_recipe
from benchmarks.science.plots import draw_part
from benchmarks.science.results import Comparison, Results, Row, seconds_by_job
from benchmarks.science.study import ABLATIONS, ICC_NSP, PRETRAINED, SELF_DISTILLED, StudyConfig, file_stem
from finetune.evaluation.metrics import MIN_GROUPS
from finetune.evaluation.table import MISSING, score_cell, signed_score_cell
from mose.errors import MoseError
from mose.files.atomic_file import write_text

FACTS_NAME = "facts.json"
TITLES = {
    PRETRAINED: "Pre-trained against random weights",
    SELF_DISTILLED: "Self-distilled against single-exit fine-tuning",
    ICC_NSP: "In-context classification against next-sentence prediction",
    ABLATIONS: "Ablations of pre-training",
}
PAPER = {
    PRETRAINED: "No such comparison; all of its results are of fine-tuned pre-trained models (Table 1).",
    SELF_DISTILLED: "Exits fine-tuned together beat the same exits fine-tuned alone, by up to 4.36 points of Recall@1 (exit 9; "
    "section 6.3, Figure 5).",
    ICC_NSP: "ICC beats NSP at 30M parameters and 3B tokens, CoIR NDCG@10: CSN-CCR 10.1 against 6.2, CosQA .4 and .4, CT-DL 32.0 "
    "against 31.0, CT-Contest 12.1 against 12.0 (Table 3).",
    ABLATIONS: "Not tried, but for the single exits, which it fine-tunes and does not pre-train (section 6.3).",
}
ARMS = {
    ICC: "pre-trained with ICC",
    RANDOM: "random weights",
    START: "the untrained start of pre-training",
    NSP: "pre-trained with NSP",
    "cut": "the same exit fine-tuned alone",
    "alone": "each exit pre-trained alone",
    "uniform_weights": "equal weights of the exits",
    "no_layer_index": "no layer index in the heads",
    "mlm_only": "masked tokens alone",
    "distillation": "a teacher term",
}
HELD_OUT_PAIRS = "held-out repositories"


def write_page(study: StudyConfig, page: Path, images: Path) -> str:
    """Write the page and its pictures; returns the summary for the console.

    Raises:
        MoseError: the study has no comparison with results on both sides yet.
    """
    results = Results(study)
    comparisons = results.comparisons()
    if not comparisons and not results.gates():
        raise MoseError(f"{study.output}: no results yet, expected a study that `make science` has run")
    sections = [_head(study, results), _summary(results, comparisons), _pretraining(results)]
    for part in study.parts:
        found = [comparison for comparison in comparisons if comparison.part == part]
        picture = images / f"science_{part}.svg"
        if found:
            draw_part(found, ARMS, picture)
        sections.append(_section(results, part, found, Path("images") / picture.name))
    write_text(page, "\n\n".join([*sections, _limits(study), _durations(study)]) + "\n")
    return "\n".join(f"{TITLES[part]}: {' '.join(findings(results, part, comparisons))}" for part in study.parts)


def findings(results: Results, part: str, comparisons: Iterable[Comparison]) -> list[str]:
    """What the queries of a part show: a sentence per pair of arms and file of queries, after that of the gate."""
    shut = {seed: reason for seed, reason in results.gates().items() if reason}
    found = []
    if part == ICC_NSP and shut:
        reasons = "; ".join(f"seed {seed}: {reason}" for seed, reason in shut.items())
        found = [f"**Stopped at the gate** for {len(shut)} of {len(results.study.seeds)} seeds ({reasons})."]
    found += [_verdict(one) for one in comparisons if one.part == part]
    return found or ["Not run."]


def _verdict(comparison: Comparison) -> str:
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "no difference shown": []}
    for row in comparison.rows:
        low, high = row.difference["mrr"].interval
        kinds["better" if low > 0 else "worse" if high < 0 else "no difference shown"].append(row.exit)
    found = "; ".join(f"{kind} at exit{'s' * (len(exits) > 1)} {', '.join(exits)}" for kind, exits in kinds.items() if exits)
    where = f"`{file_stem(comparison.file)}`" if comparison.file else HELD_OUT_PAIRS
    return f"{_capital(ARMS[comparison.first])} against {ARMS[comparison.second]}; {where}: {found} (MRR)."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _head(study: StudyConfig, results: Results) -> str:
    facts: dict[str, Any] = json.loads((study.folder / FACTS_NAME).read_text("utf-8"))
    model, batch = (read_recipe(study, "pretrain").get(name, {}) for name in ("model", "batch"))
    waiting = _waiting(study, results)
    unfinished = f"\n\n**Not finished**: {waiting} commands have not run yet. Each row says over how many seeds it is."
    return f"""# The paper's claims in small

`make science` runs this study and writes this page; every number and sentence on results below comes from its result files.
The paper is "MoSE: Hierarchical Self-Distillation Enhances Early Layer Embeddings" (`docs/paper.md`).

**Scale.** {model.get("num_layers")} layers of width {model.get("width")} with exits after layers {_listed(model["exit_layers"])},
{_tokens(study)} tokens of Python packages in rows of {model.get("max_length")} ({batch.get("global_rows")} rows per step),
seeds {_listed(study.seeds)}; recipe `{study.recipe}`. {facts["date"]}, {facts["cores"]} CPU cores, commit {facts["commit"]}.
The paper's model has 36 layers of width 1,024 and saw 1T tokens: nothing here confirms or refutes its results at its size.\
{unfinished if waiting else ""}

**How to read it.** All models answer the same queries among the same candidates. A difference is the mean over seeds of paired
differences; its 95 % interval draws seeds and repositories with replacement (2,000 times). Where a file has fewer than
{MIN_GROUPS} repositories, queries are drawn instead. An interval that holds 0 shows no difference; it does not show that
there is none."""


def _waiting(study: StudyConfig, results: Results) -> int:
    """Number of commands that are neither done nor behind a closed gate."""
    shut = {f"seed_{seed}/{NSP}" for seed, reason in results.gates().items() if reason}
    done = seconds_by_job(study.folder)
    return sum(job.name not in done and "/".join(job.name.split("/")[:2]) not in shut for job in jobs_of(study))


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _tokens(study: StudyConfig) -> str:
    """Real tokens of the runs, in millions, from their metrics."""
    found = [consumed_tokens(study.folder / f"seed_{seed}" / ICC / "run") for seed in study.seeds]
    known = [tokens for tokens in found if tokens]
    return f"{statistics.fmean(known) / 1e6:,.1f}M" if known else "no"


def consumed_tokens(run: Path) -> int:
    """Real tokens that a pre-training run has seen; 0 where there is no such run."""
    path = run / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return int(json.loads(lines[-1])["consumed_tokens"]) if lines else 0


def _summary(results: Results, comparisons: Sequence[Comparison]) -> str:
    lines = ["## Summary", "", "| claim | the paper | this study |", "|---|---|---|"]
    lines += [
        f"| {TITLES[part]} | {PAPER[part]} | {' '.join(findings(results, part, comparisons))} |" for part in results.study.parts
    ]
    return "\n".join(lines)


def _pretraining(results: Results) -> str:
    """Held-out losses of the pre-trained models, and the gate of the in-context task."""
    lines = ["## Pre-training, and the gate of the in-context task", ""]
    lines += ["| seed | exit | MLM loss | unigram | left bigram | ICC accuracy | more frequent label |", "|---" * 7 + "|"]
    for seed in results.study.seeds:
        report = results.held_out(seed, ICC) or {"exits": {}}
        for name, row in report["exits"].items():
            task, majority = _accuracy(row, "icc"), report.get("icc_majority_rate", 0.0)
            unigram, bigram = report["unigram_cross_entropy"], report["left_bigram_cross_entropy"]
            lines.append(f"| {seed} | {name} | {row['mlm']:.3f} | {unigram:.3f} | {bigram:.3f} | {task} | {majority:.3f} |")
    lines.append("")
    for seed, reason in results.gates().items():
        lines.append(
            f"- seed {seed}: {f'**gate closed**: {reason}' if reason else 'gate open: the deepest exit is above chance'}"
        )
    lines += [
        "",
        "A seed whose deepest exit is at chance takes no part in ICC against NSP: a task that was not learnt has no effect to",
    ]
    return "\n".join([*lines, "measure.", *_references(results)])


def _references(results: Results) -> list[str]:
    """What lexical baselines and a bag of embeddings, trained on the same pairs, reach on the same queries."""
    found = (results.scores(seed, ICC) for seed in results.study.seeds)
    scores = next((evaluation for evaluation in found if evaluation), None)
    if scores is None:
        return []
    cells = ", ".join(f"{name} {score_cell(row.mrr)}" for name, row in scores.baselines.items())
    return ["", f"References on the held-out queries, MRR: {cells}, chance {scores.chance_mrr:.4f}."]


def _accuracy(row: dict[str, Any], task: str) -> str:
    if f"{task}_accuracy" not in row:
        return MISSING
    low, high = row[f"{task}_interval"]
    return f"{row[f'{task}_accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def _section(results: Results, part: str, comparisons: Sequence[Comparison], picture: Path) -> str:
    lines = [f"## {TITLES[part]}", "", f"Paper: {PAPER[part]}", "", "This study:", ""]
    lines += [f"- {sentence}" for sentence in findings(results, part, comparisons)]
    if part == ICC_NSP:
        lines += _equal_tokens(results)
    for comparison in comparisons:
        lines += ["", *_table(comparison)]
    if comparisons:
        lines += ["", f"![{TITLES[part]}: MRR of both sides, and the differences with their intervals]({picture.as_posix()})"]
    return "\n".join(lines)


def _table(comparison: Comparison) -> list[str]:
    where = f"`{file_stem(comparison.file)}`" if comparison.file else HELD_OUT_PAIRS
    first, second = ARMS[comparison.first], ARMS[comparison.second]
    title = (
        f"{_capital(first)} against {second}; {where}: {comparison.queries:,} queries of {comparison.repositories:,} "
        f"repositories, {comparison.candidates:,} candidates each."
    )
    head = ["exit", "seeds", f"MRR, {first}", f"MRR, {second}", "difference of MRR", "difference of recall@1"]
    losses = any(row.masked_tokens[0] for row in comparison.rows)
    head += ["MLM loss, both sides"] if losses else []
    rows = [_cells(row, losses) for row in comparison.rows]
    return [title, "", *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))]


def _cells(row: Row, losses: bool) -> list[str]:
    sides = [_mean_and_range(side["mrr"]) for side in (row.first, row.second)]
    cells = [row.exit, str(len(row.seeds)), *sides, *(signed_score_cell(row.difference[name]) for name in ("mrr", "recall_at_1"))]
    if losses:
        cells.append(" / ".join(f"{statistics.fmean(side):.3f}" if side else MISSING for side in row.masked_tokens))
    return cells


def _mean_and_range(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _equal_tokens(results: Results) -> list[str]:
    lines = []
    for seed in results.study.seeds:
        tokens = {arm: consumed_tokens(results.folder / f"seed_{seed}" / arm / "run") for arm in (ICC, NSP)}
        own = results.held_out(seed, NSP, HELD_OUT.replace(".json", "_nsp.json"))
        if not tokens[NSP] or own is None:
            continue
        name, row = max(own["exits"].items())
        lines.append(
            f"- seed {seed}: {tokens[ICC]:,} real tokens with ICC, {tokens[NSP]:,} with NSP; NSP accuracy at exit {name} "
            f"{_accuracy(row, NSP)}, the more frequent label has {own['nsp_majority_rate']:.3f}"
        )
    return lines


def _limits(study: StudyConfig) -> str:
    seeds = len(study.seeds)
    few = f"{seeds} seeds: drawing from {seeds} values gives {seeds - 1}/{seeds} of their variance, so intervals are too narrow."
    one = "One seed: no interval knows how much another seed would change."
    return f"""## Limits

- {few if seeds > 1 else one}
- One split of repositories, one tokenizer. The data are the packages installed on the machine, Python alone.
- Several exits and files are compared and no interval is corrected for their number: expect one of 20 to miss 0 by chance.
- NSP rows hold two segments and fewer tokens than rows of many snippets; both runs see the same number of real tokens in about as
  many steps, so a step of NSP has more rows.
- Evaluation files may hold repositories that are also installed packages, and so were trained on."""


def _durations(study: StudyConfig) -> str:
    seconds = seconds_by_job(study.folder)
    kinds: dict[str, list[float]] = {}
    for name, value in seconds.items():
        kinds.setdefault(name.rpartition("/")[2].partition("_")[0] if "/" in name else "data", []).append(value)
    rows = [f"| {kind} | {len(values)} | {sum(values) / 60:.1f} |" for kind, values in kinds.items()]
    lines = ["## Duration", "", "| commands | number | minutes of one worker |", "|---|---|---|", *rows]
    return "\n".join([*lines, f"| all | {len(seconds)} | {sum(seconds.values()) / 60:.1f} |"])
