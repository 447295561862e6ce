"""`mose-pretrain`: train, export, evaluate on held-out rows, plot."""

import os
import sys
import time
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from mose.command import Command, add_config, read_config, run_command
from mose.config import document_fields
from mose.errors import MoseError
from mose.run_directory import RunDirectory
from pretrain.config import Layout, PretrainConfig

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
        "export": Command("Convert a training checkpoint to a Hugging Face folder, with a parity report.", _add_export, _export),
        "evaluate": Command("Losses of every exit on held-out rows, beside token frequencies.", _add_evaluate, _evaluate),
        "plot": Command("Draw a run's losses as a PNG.", _add_plot, _plot),
    }


def _add_train(parser: ArgumentParser) -> None:
    add_config(parser, PretrainConfig)
    parser.add_argument("--dry-run", action="store_true", help="Print derived numbers and stop; allocates nothing.")
    parser.add_argument("--ranks", type=int, default=0, help="With --dry-run: ranks to plan for (default: those launched).")
    parser.add_argument("--mock-step", action="store_true", help="Run one real step on made-up rows and stop; reads no data.")


def _train(parsed: Namespace) -> int | None:
    from pretrain.parallel.context import choose_accelerator

    config = read_config(parsed, PretrainConfig)
    if parsed.dry_run:
        return _dry_run(config, parsed.ranks)
    choose_accelerator()
    if parsed.mock_step:
        from pretrain.mock_step import mock_step

        if sentence := mock_step(config):
            print(sentence)
        return None
    from pretrain.train import train

    try:
        train(config)
    except MoseError:
        # Every rank finds the same fault in the same files. Rank 0 says so and the launcher ends the others; one that still
        # lives after a while has found a fault of its own.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(FIRST_WORD_SECONDS)
        raise
    return None


def _dry_run(config: PretrainConfig, ranks: int) -> int | None:
    from mose.manifest import read_manifest
    from pretrain.estimate import derived_numbers
    from pretrain.parallel.context import launched_world_size

    manifest = read_manifest(Path(config.data.dataset)) if config.data.dataset else None
    config = config.resolve(manifest.vocabulary_size if manifest else config.model.vocabulary_size)
    table = Table("number", "value", title="derived from the config; nothing was allocated")
    for label, value in derived_numbers(config, Layout.of(config, ranks or launched_world_size()), manifest):
        table.add_row(label, value)
    Console(soft_wrap=True).print(table)
    return None


def _add_export(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="Run directory written by `mose-pretrain train`.")
    parser.add_argument("--output", type=str, required=True, help="Folder to write; must not exist.")
    parser.add_argument("--step", type=int, default=None, help="Step of the checkpoint (default: the latest).")
    parser.add_argument("--exit", type=int, default=None, help="Keep layers 1..EXIT and that exit's heads (default: all exits).")


def _export(parsed: Namespace) -> None:
    from pretrain.parallel.context import choose_accelerator

    choose_accelerator()
    from pretrain.export import export_run

    parity = export_run(Path(parsed.run), Path(parsed.output), parsed.step, parsed.exit)
    table = Table("exit", "largest difference", "of the largest value", title=f"{parsed.output}: exported against the live model")
    for layer, exit_parity in parity["exits"].items():
        table.add_row(layer, f"{exit_parity['largest_difference']:.2e}", f"{exit_parity['relative']:.2e}")
    Console().print(table)


def _add_evaluate(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=str, required=True, help="Converted checkpoint with all exits.")
    parser.add_argument("--dataset", type=str, required=True, help="Data set written by `mose-data pack`.")
    parser.add_argument("--split", type=str, default="held_out", help="Split to evaluate.")
    parser.add_argument("--max-rows", type=int, default=0, help="Rows from the start of the split (0: all).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the masks.")
    parser.add_argument("--output", type=str, required=True, help="JSON file to write.")


def _evaluate(parsed: Namespace) -> None:
    from pretrain.held_out import evaluate_held_out, write_held_out

    report = evaluate_held_out(Path(parsed.checkpoint), Path(parsed.dataset), parsed.split, parsed.max_rows, parsed.seed)
    write_held_out(report, Path(parsed.output))
    title = f"{report['rows']:,} {parsed.split} rows, {report['masked_tokens']:,} masked tokens"
    table = Table("exit", "MLM loss", "MLM accuracy", "ICC accuracy", "95 % interval", title=title)
    for layer, values in report["exits"].items():
        low, high = values["icc_interval"]
        cells = (f"{values['mlm']:.3f}", f"{values['mlm_accuracy']:.3f}", f"{values['icc_accuracy']:.3f}")
        table.add_row(layer, *cells, f"{low:.3f} - {high:.3f}")
    unigram = f"{report['unigram_cross_entropy']:.3f}"
    table.add_row("unigram", unigram, "", f"{report['icc_majority_rate']:.3f} (majority)", "")
    Console().print(table)


def _add_plot(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="Run directory.")
    parser.add_argument("--output", type=str, required=True, help="PNG file to write.")


def _plot(parsed: Namespace) -> None:
    from pretrain.plot import plot_losses

    plot_losses(RunDirectory(Path(parsed.run)), Path(parsed.output))
    print(parsed.output)


if __name__ == "__main__":
    main()
