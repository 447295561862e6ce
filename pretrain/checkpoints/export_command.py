"""The commands `mose-pretrain export` and `mose-pretrain import`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from mose.command import Command
from mose.files.streams import make_console


def export_commands() -> dict[str, Command]:
    """The two subcommands."""
    return {
        "export": Command("Convert a training checkpoint to Hugging Face folders, with parity reports.", _add_export, _export),
        "import": Command("Convert a folder in the layout of the released checkpoints.", _add_import, _import),
    }


def _add_export(parser: ArgumentParser) -> None:
    run = "Run directory written by `mose-pretrain train`, or a converted checkpoint (pre-trained or fine-tuned)."
    parser.add_argument("run", type=str, help=run)
    output = "Folder to write; must not exist. Several exits are written to OUTPUT/exit_04 and so on."
    parser.add_argument("--output", type=str, required=True, help=output)
    parser.add_argument("--step", type=int, default=None, help="Step of the checkpoint (default: the latest).")
    exits = "Exits to cut at: layers 1..EXIT and that exit's heads (default: one folder with all exits)."
    parser.add_argument("--exit", type=int, nargs="+", default=[], help=exits)
    parser.add_argument("--all-exits", action="store_true", help="Cut at each exit, in one reading of the weights.")
    layout = "ours (float32), or published (names, config fields and bfloat16 of the released checkpoints)."
    parser.add_argument("--layout", type=str, choices=["ours", "published"], default="ours", help=layout)


def _export(parsed: Namespace) -> None:
    from pretrain.checkpoints.export import ExportRequest, export_run

    request = ExportRequest(parsed.step, tuple(parsed.exit), parsed.all_exits, parsed.layout)
    reports = export_run(Path(parsed.run), Path(parsed.output), request)
    table = Table(
        "folder", "exit", "largest difference", "of the largest value", title=f"{parsed.output}: against the live model"
    )
    for folder, report in reports.items():
        for layer, parity in (report or {"exits": {}})["exits"].items():
            table.add_row(folder, layer, f"{parity['largest_difference']:.2e}", f"{parity['relative']:.2e}")
    if table.row_count:
        make_console().print(table)
    else:
        print(f"{parsed.output}: copied, {len(reports)} folder{'s' if len(reports) > 1 else ''}")


def _add_import(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=str, help="Folder with config.json, safetensors and a tokenizer.")
    parser.add_argument("--output", type=str, required=True, help="Folder to write; must not exist.")
    tokenizer = "tokenizer.json or its folder, where FOLDER holds none."
    parser.add_argument("--tokenizer", type=str, default=None, help=tokenizer)


def _import(parsed: Namespace) -> None:
    from mose.checkpoint.published_checkpoint import import_published

    tokenizer = Path(parsed.tokenizer) if parsed.tokenizer else None
    found = import_published(Path(parsed.folder), Path(parsed.output), tokenizer)
    exits = ", ".join(str(layer) for layer in found.config.exit_layers)
    print(f"{parsed.output}: {found.model_class.__name__}, {len(found.stored_names)} tensors, exits {exits}")
