"""`mose-pretrain`: train, inspect checkpoints and steps, export, evaluate on held-out rows, diagnose, plot."""

import os
import sys
import time
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from mose.command import DIVERGED, STOPPED, Command, add_config, read_config, run_command
from mose.config import document_fields
from mose.errors import MoseError
from mose.files.storage import storage_path
from mose.files.streams import make_console
from mose.run_directory import RunDirectory
from pretrain.checkpoints.export_command import export_commands
from pretrain.config.run import Layout, PretrainConfig

FIRST_WORD_SECONDS = 15


def main() -> None:
    """Entry point."""
    document_fields()
    description = "Pre-train a multi-exit encoder on packed shards with DeepSpeed ZeRO and megatron-core tensor parallelism."
    sys.exit(run_command("mose-pretrain", description, commands()))


def commands() -> dict[str, Command]:
    """The subcommands."""
    return {
        "train": Command("Train, or continue a run from its latest checkpoint.", _add_train, _train),
        "init": Command("Write seeded initial weights as a converted checkpoint, for start_from.", _add_init, _init),
        "checkpoints": Command("List a run's checkpoints; exit code 1 if one is damaged.", _add_checkpoints, _checkpoints),
        "rows": Command("List the rows of a step, as `mose-data lineage --rows` reads them.", _add_rows, _rows),
        "compare": Command("Compare the tensors of two checkpoints; exit code 1 if they differ.", _add_compare, _compare),
        **export_commands(),
        "evaluate": Command("Losses of every exit on held-out rows, beside token frequencies.", _add_evaluate, _evaluate),
        "diagnose": Command(
            "What a run has learnt, and gradients of a checkpoint's exits on the shared trunk.", _add_diagnose, _diagnose
        ),
        "doctor": Command(
            "What a GPU run needs of this machine, and what to do; exit code 1 if something is.", _add_none, _doctor
        ),
        "plot": Command("Draw a run's losses, gradient norm and speed as a PNG.", _add_plot, _plot),
    }


def _add_train(parser: ArgumentParser) -> None:
    add_config(parser, PretrainConfig)
    parser.add_argument("--dry-run", action="store_true", help="Print derived numbers and exit; allocates nothing.")
    parser.add_argument("--ranks", type=int, default=0, help="With --dry-run: ranks to plan for (default: those launched).")
    parser.add_argument("--mock-step", action="store_true", help="Run one real step on generated rows and exit; reads no data.")

    steps = "Steps to record with torch's profiler, after 5 steps of warm-up, into RUN/profile/rank-00000.json (0: none)."
    parser.add_argument("--profile-steps", type=int, default=0, help=steps)
    parser.add_argument("--profile-ranks", type=int, nargs="+", default=[0], help="With --profile-steps: ranks that record.")

    resume = "Checkpoint to resume from: auto (newest complete one), never (refuse an existing run), or a step."
    parser.add_argument("--resume", type=str, default="auto", help=resume)
    allow = "Dotted name of a config field that may differ from the checkpoint's; may be given more than once."
    parser.add_argument("--allow-change", type=str, action="append", default=[], metavar="FIELD", help=allow)
    trust = "Unpickle a checkpoint of another user whose states hold more than tensors. It can run any code as you."
    parser.add_argument("--trust-checkpoint", action="store_true", help=trust)


def _train(parsed: Namespace) -> int | None:
    from mose.files.stop_signal import launcher_processes
    from pretrain.parallel.context import choose_accelerator

    # Before the imports below, which take seconds: a launcher that ends meanwhile is noticed, too.
    launcher = launcher_processes()
    config = read_config(parsed, PretrainConfig)
    if parsed.dry_run:
        return _dry_run(config, parsed.ranks)
    choose_accelerator()
    if parsed.mock_step:
        from pretrain.mock_step import mock_step

        if sentence := mock_step(config):
            print(sentence)
        return None
    from pretrain.checkpoints.run_state import DivergedError
    from pretrain.checkpoints.store import ResumeRequest
    from pretrain.monitoring.profiler import ProfileRequest
    from pretrain.train import train

    profiling = ProfileRequest(parsed.profile_steps, tuple(parsed.profile_ranks))
    try:
        request = ResumeRequest(parsed.resume, tuple(parsed.allow_change), parsed.trust_checkpoint)
        finished = train(config, request, profiling, launcher)
    except DivergedError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"mose-pretrain: {error}", file=sys.stderr, flush=True)
        return DIVERGED
    except BrokenPipeError:
        # The reader of our output has exited. 0, as other commands return, would say that the run is finished.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 1
    except MoseError:
        # Usually every rank finds the same fault in the same files. Rank 0 reports it at once and the launcher ends the others; a
        # rank that is still alive after the wait has found a fault of its own, and reports it.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(FIRST_WORD_SECONDS)
        raise
    return None if finished else STOPPED


def _dry_run(config: PretrainConfig, ranks: int) -> int | None:
    from pretrain.analysis.estimate import derived_numbers
    from pretrain.parallel.context import launched_world_size
    from pretrain.storage.run_data import check_task, sources_of

    sources = sources_of(config.data) if config.data.dataset or config.data.mixture else ()
    check_task(config.objective, sources)
    config = config.resolve(sources[0].manifest.vocabulary_size if sources else config.model.vocabulary_size)
    table = Table("number", "value", title="derived from the config; nothing was allocated")
    for label, value in derived_numbers(config, Layout.of(config, ranks or launched_world_size()), sources):
        table.add_row(label, value)
    make_console(soft_wrap=True).print(table)
    return None


def _add_init(parser: ArgumentParser) -> None:
    add_config(parser, PretrainConfig)


def _init(parsed: Namespace) -> None:
    from pretrain.model.warm_start import write_initial_weights

    config = read_config(parsed, PretrainConfig)
    model = write_initial_weights(config, Path(config.output))
    print(f"{config.output}: {model.num_parameters():,} initial weights of seed {config.seed}")


def _add_checkpoints(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="Run directory written by `mose-pretrain train`.")
    parser.add_argument("--check", action="store_true", help="Read every byte and compare checksums, not only sizes.")


def _checkpoints(parsed: Namespace) -> int:
    from pretrain.analysis.list_checkpoints import list_checkpoints

    listed = list_checkpoints(Path(parsed.run), parsed.check)
    depth = "every byte was read" if parsed.check else "sizes compared; --check reads every byte"
    table = Table("checkpoint", "MB", "layout", "loss", "state", "kept", title=f"{parsed.run}: {depth}")
    for one in listed:
        loss = "" if one.loss is None else f"{one.loss:.4f}"
        kept = ", ".join(word for word, holds in (("latest", one.latest), ("permanent", one.permanent)) if holds)
        state = "whole" if one.fault is None else "damaged"
        table.add_row(one.name, f"{one.num_bytes / 1e6:,.1f}", one.layout, loss, state, kept)
    console = make_console(soft_wrap=True)
    console.print(table if listed else f"{parsed.run}: no checkpoint yet")
    damaged = [one for one in listed if one.fault is not None]
    for one in damaged:
        console.print(f"{one.name}: {one.fault}")
    return 1 if damaged else 0


def _add_rows(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="Run directory written by `mose-pretrain train`.")
    parser.add_argument("--step", type=int, required=True, help="Step as metrics.jsonl and skipped.jsonl count it, from 1.")
    parser.add_argument("--source", type=str, default="", help="Of a mixture: the data set whose rows are printed.")


def _rows(parsed: Namespace) -> None:
    from pretrain.analysis.step_rows import row_list, rows_of_step, source_named

    part = source_named(rows_of_step(Path(parsed.run), parsed.step), parsed.source)
    print("\n".join(row_list(part, parsed.step)))


def _add_compare(parser: ArgumentParser) -> None:
    what = "Run directory (its latest checkpoint), training checkpoint, or converted checkpoint."
    parser.add_argument("first", type=str, help=what)
    parser.add_argument("second", type=str, help=what)
    parser.add_argument("--top", type=int, default=20, help="Number of tensors to show, largest difference first.")


def _compare(parsed: Namespace) -> int:
    from pretrain.analysis.compare import compare_checkpoints

    found = compare_checkpoints(Path(parsed.first), Path(parsed.second))
    table = Table("tensor", "largest difference", "of the largest value")
    for one in found.differing[: parsed.top]:
        table.add_row(one.name, f"{one.largest:.2e}", f"{one.relative:.2e}")
    for name, where in [(n, "first") for n in found.only_first] + [(n, "second") for n in found.only_second]:
        table.add_row(name, f"only in the {where}", "")
    if not found.equal:
        make_console().print(table)
    alone = len(found.only_first) + len(found.only_second)
    print(f"{found.identical} tensors identical, {len(found.differing)} differ, {alone} in one only")
    return 0 if found.equal else 1


def _add_evaluate(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=str, required=True, help="Converted checkpoint with all exits.")
    parser.add_argument("--dataset", type=str, required=True, help="Data set written by `mose-data pack`.")
    parser.add_argument("--split", type=str, default="held_out", help="Split to evaluate.")
    parser.add_argument("--max-rows", type=int, default=0, help="Rows from the start of the split (0: all).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the masks.")
    parser.add_argument("--output", type=str, required=True, help="JSON file to write.")


def _evaluate(parsed: Namespace) -> None:
    from pretrain.analysis.held_out import evaluate_held_out, write_held_out

    report = evaluate_held_out(Path(parsed.checkpoint), storage_path(parsed.dataset), parsed.split, parsed.max_rows, parsed.seed)
    write_held_out(report, Path(parsed.output))
    title = f"{report['rows']:,} {parsed.split} rows, {report['masked_tokens']:,} masked tokens"
    task = report["sequence_task"]
    known = task != "none"
    table = Table(
        "exit", "MLM loss", "MLM accuracy", *((f"{task.upper()} accuracy", "95 % interval") if known else ()), title=title
    )
    for layer, values in report["exits"].items():
        cells = [f"{values['mlm']:.3f}", f"{values['mlm_accuracy']:.3f}"]
        if known:
            low, high = values[f"{task}_interval"]
            cells += [f"{values[f'{task}_accuracy']:.3f}", f"{low:.3f} - {high:.3f}"]
        table.add_row(layer, *cells)
    majority = f"{report[f'{task}_majority_rate']:.3f} (majority)" if known else ""
    table.add_row("unigram", f"{report['unigram_cross_entropy']:.3f}", "", *((majority, "") if known else ()))
    table.add_row("left bigram", f"{report['left_bigram_cross_entropy']:.3f}", "", *(("", "") if known else ()))
    make_console().print(table)


def _add_diagnose(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="Run directory; RUN/diagnose/step-000100/ gets a JSON file and a PNG.")
    parser.add_argument("--step", type=int, default=None, help="Step of the checkpoint (default: the latest).")
    parser.add_argument("--rows", type=int, default=8, help="Number of rows from the start of the split, in one batch.")
    parser.add_argument("--split", type=str, default=None, help="Split of the run's data (default: the held-out one).")


def _diagnose(parsed: Namespace) -> None:
    from pretrain.analysis.diagnose import diagnose

    diagnosis = diagnose(Path(parsed.run), parsed.step, parsed.rows, parsed.split)
    folder, found = diagnosis.folder, diagnosis.gradients
    exits = [f"exit {layer}" for layer in found.exit_layers]
    title = f"{folder}: gradients on the shared trunk, cosines between exits"
    table = Table("", "norm", *exits, title=title)
    for name, norm, cosines in zip(exits, found.trunk_norms_E, found.cosines_EE, strict=True):
        table.add_row(name, f"{norm:.3e}", *(f"{cosine:+.3f}" for cosine in cosines))
    watched = Table("watched", "value", "compared with", "", title="what the run has learnt so far, by its metrics")
    for finding in diagnosis.learning:
        watched.add_row(finding.name, finding.value, finding.reference, "LOOK" if finding.warning else "ok")
    console = make_console(soft_wrap=True)
    console.print(watched if diagnosis.learning else "no metrics after the warm-up yet: nothing to watch")
    for finding in diagnosis.learning:
        if finding.warning:
            console.print(f"{finding.name}: {finding.warning}")
    console.print(table)


def _add_none(parser: ArgumentParser) -> None:
    """A command without options."""


def _doctor(parsed: Namespace) -> int:
    from pretrain.analysis.doctor import examine

    table = Table("", "found", "do", title="what a GPU run needs of this machine")
    findings = examine()
    for finding in findings:
        table.add_row(finding.name, finding.value, finding.advice or "-")
    make_console(soft_wrap=True).print(table)
    return 1 if any(finding.advice for finding in findings) else 0


def _add_plot(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="Run directory.")
    parser.add_argument("--output", type=str, required=True, help="PNG file to write.")


def _plot(parsed: Namespace) -> None:
    from pretrain.analysis.plot import plot_losses

    plot_losses(RunDirectory(Path(parsed.run)), Path(parsed.output))
    print(parsed.output)


if __name__ == "__main__":
    main()
