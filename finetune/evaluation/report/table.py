"""The table of the report: exit x what pre-training and retrieval reached, and what falls short of its references."""

from rich.table import Table

from finetune.evaluation.paired import mrr_difference
from finetune.evaluation.report.held_out import HeldOut
from finetune.evaluation.results import Evaluation
from finetune.evaluation.table import MISSING, gflops_cell, parameters_cell, score_cell, signed_score_cell


def report_table(held_out: HeldOut, evaluation: Evaluation, control: Evaluation | None, start: Evaluation | None = None) -> Table:
    """Exit x parameters, GFLOPs per row, held-out MLM loss and ICC accuracy, MRR, recall@1, the control's MRR, the difference.

    Below them stand the levels without an encoder, and the exits of `start`, which no pre-training has changed.
    """
    table = Table(title="Every exit, on held-out repositories (95 % intervals)", title_justify="left")
    table.add_column("exit")
    names = ["parameters (M)", "GFLOPs per row", "MLM loss", "ICC accuracy", "MRR", "recall@1"]
    for name in names + (["MRR, random weights", "difference"] if control else []):
        table.add_column(name, justify="right")
    for name, scores in evaluation.exits.items():
        cells = [parameters_cell(scores.parameters), gflops_cell(scores.gflops_per_row), *_pretraining_cells(held_out, name)]
        cells += [score_cell(scores.mrr), score_cell(scores.recall_at_1)]
        table.add_row(name, *cells, *_control_cells(evaluation, control, name))
    table.add_section()
    ends = [MISSING, MISSING] if control else []
    for name, (loss, accuracy) in levels(held_out).items():
        if loss is not None or accuracy is not None:
            table.add_row(name, MISSING, MISSING, _number(loss), _number(accuracy), MISSING, MISSING, *ends)
    blanks = [MISSING] * 4
    for name, scores in start.exits.items() if start else ():
        table.add_row(f"untrained start, exit {name}", *blanks, score_cell(scores.mrr), score_cell(scores.recall_at_1), *ends)
    for name, row in evaluation.baselines.items():
        table.add_row(name, *blanks, score_cell(row.mrr), score_cell(row.recall_at_1), *ends)
    chance = [f"{evaluation.chance_mrr:.4f}", f"{1 / evaluation.candidates:.4f}"]
    table.add_row("chance", *blanks, *chance, *ends)
    return table


def levels(held_out: HeldOut) -> dict[str, tuple[float | None, float | None]]:
    """MLM loss and ICC accuracy without an encoder, by what is counted instead."""
    return {
        "unigram": (held_out.unigram_cross_entropy, None),
        "left bigram": (held_out.left_bigram_cross_entropy, None),
        "more frequent label": (None, held_out.icc_majority_rate),
    }


def _pretraining_cells(held_out: HeldOut, name: str) -> list[str]:
    row = held_out.exits.get(name, {})
    accuracy = MISSING
    if row.get("icc_accuracy") is not None:
        accuracy = f"{row['icc_accuracy']:.3f}"
        if row.get("icc_interval"):
            accuracy += " [{:.3f}, {:.3f}]".format(*row["icc_interval"])
    return [_number(row.get("mlm")), accuracy]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _control_cells(evaluation: Evaluation, control: Evaluation | None, name: str) -> list[str]:
    if control is None:
        return []
    difference = mrr_difference(evaluation, control, name)
    own = score_cell(control.exits[name].mrr) if name in control.exits else MISSING
    return [own, MISSING if difference is None else signed_score_cell(difference)]


def notes(held_out: HeldOut, evaluation: Evaluation, control: Evaluation | None, start: Evaluation | None = None) -> list[str]:
    """What the numbers were measured on, and which exits do not beat a reference that they should beat."""
    lines = [
        f"retrieval: {evaluation.queries:,} queries of {evaluation.repositories:,} repositories, "
        f"{evaluation.candidates:,} candidates each, split {evaluation.split}; intervals over repositories; "
        f"GFLOPs for a row of {evaluation.flops_tokens} tokens",
    ]
    if held_out.rows is not None:
        lines.append(f"MLM and ICC: {held_out.rows:,} held-out rows")
    for name in evaluation.exits:
        lines += [f"falls short: exit {name}: {text}" for text in shortfalls(name, held_out, evaluation, control)]
    if start is not None:
        differences = {name: mrr_difference(evaluation, start, name) for name in start.exits}
        lines += [
            f"exit {name}: MRR minus the untrained start's {signed_score_cell(found)}"
            for name, found in differences.items()
            if found
        ]
    return lines


def shortfalls(name: str, held_out: HeldOut, evaluation: Evaluation, control: Evaluation | None) -> list[str]:
    """What one exit should beat and does not: unigram, the deepest also left bigram, majority rate, chance, random weights."""
    row, mrr = held_out.exits.get(name, {}), evaluation.exits[name].mrr
    unigram, majority = held_out.unigram_cross_entropy, held_out.icc_majority_rate
    found = []
    if unigram is not None and row.get("mlm") is not None and row["mlm"] >= unigram:
        found.append(f"MLM loss {row['mlm']:.3f} is not below the unigram cross-entropy {unigram:.3f}")
    bigram = held_out.left_bigram_cross_entropy
    if name == max(evaluation.exits) and bigram is not None and row.get("mlm") is not None and row["mlm"] >= bigram:
        found.append(f"MLM loss {row['mlm']:.3f} is not below the left bigram's cross-entropy {bigram:.3f}")
    if majority is not None and row.get("icc_interval") and row["icc_interval"][0] <= majority:
        found.append(f"the ICC accuracy's interval does not lie above the majority rate {majority:.3f}")
    if mrr.interval[0] <= evaluation.chance_mrr:
        found.append(f"the MRR interval does not lie above chance ({evaluation.chance_mrr:.4f})")
    if control and name in control.exits:
        difference = mrr_difference(evaluation, control, name)
        if difference is not None and difference.interval[0] <= 0:
            found.append("the interval of the MRR's difference to random weights does not lie above 0")
        if difference is None and mrr.value <= control.exits[name].mrr.value:
            found.append("MRR is not above that of random weights")
    return found
