"""`mose-data stats`: prints statistics of a data set as tables, and writes them as a page or a picture."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from data_prep.shards.summary import cautions, print_cautions, print_overview, print_summary
from data_prep.tools.removal.journal import read_removed
from data_prep.tools.stats.charts import Section
from data_prep.tools.stats.counts import DatasetStatistics, count_statistics
from data_prep.tools.stats.drawing import draw_png, require_matplotlib
from data_prep.tools.stats.held_out_copies import count_held_out_copies
from data_prep.tools.stats.page import stats_page
from data_prep.tools.stats.sections import stats_sections
from mose.command import Command
from mose.dataset.manifest import Manifest, read_manifest
from mose.errors import MoseError
from mose.files.atomic_file import write_text
from mose.files.storage import storage_path
from mose.files.streams import escaped, make_console

SUFFIXES = (".html", ".png")


def page_title(dataset: Path) -> str:
    """The title of the page of a data set."""
    return f"Data set {dataset.name or dataset}"


def print_sections(sections: Sequence[Section]) -> None:
    """Print the table of each section."""
    console = make_console()
    for section in sections:
        table = Table(title=section.title, title_justify="left", caption=None)
        for number, name in enumerate(section.header):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*map(escaped, row))
        console.print(table)


def write_stats(
    output: Path, dataset: Path, manifest: Manifest, statistics: DatasetStatistics, sections: Sequence[Section]
) -> None:
    """Write a page or a picture, depending on the suffix of `output`.

    Raises:
        OSError: the disk is full or not writable.
    """
    if output.suffix == ".png":
        draw_png(page_title(dataset), sections, output)
        return
    lines = [
        f"{manifest.rows('train'):,} training rows of {manifest.sequence_length:,} slots, packed "
        f"{manifest.packing_mode}, vocabulary {manifest.vocabulary_size:,}; tokenizer "
        f"{manifest.tokenizer_fingerprint}, config {manifest.config_fingerprint}.",
    ]
    write_text(output, stats_page(page_title(dataset), lines, cautions(manifest.statistics), sections))


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", type=str, help="Folder or URL of the data set.")
    parser.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="Also write page.html, or the charts alone as page.png.",
    )
    parser.add_argument("--quick", action="store_true", help="Only what the manifest says; reads no index and no lineage table.")
    parser.add_argument("--sample", type=float, default=1.0, help="Share of the shards to count, e.g. .05 for a quick look.")
    parser.add_argument("--seed", type=int, default=0, help="Which shards a sample holds.")


def _run(parsed: Namespace) -> None:
    dataset = storage_path(parsed.dataset)
    output = storage_path(parsed.output) if parsed.output else None
    if output is not None and output.suffix not in SUFFIXES:
        raise MoseError(f"{output}: output: expected a name in .html or .png")
    if output is not None and parsed.quick:
        raise MoseError("output: and quick: are both given; the page needs the counts that --quick leaves out")
    if output is not None:
        # Checked before counting, which takes minutes for a large data set.
        require_matplotlib(output)
    if not 0 < parsed.sample <= 1:
        raise MoseError(f"sample: is {parsed.sample}, expected a share above 0 and up to 1")
    manifest = read_manifest(dataset)
    if parsed.quick:
        print_summary(manifest)
        return
    statistics = count_statistics(dataset, manifest, parsed.sample, parsed.seed)
    # Part of the shards would show part of the copies, which a reader takes for all.
    copies = count_held_out_copies(dataset, manifest) if parsed.sample == 1 else None
    sections = stats_sections(manifest, statistics, read_removed(dataset), copies)
    print_overview(manifest)
    print_sections(sections)
    print_cautions(manifest)
    if output is not None:
        write_stats(output, dataset, manifest, statistics, sections)
        print(f"page: {output}")


COMMAND = Command("Show what a data set holds, as tables and as one page.", _add_arguments, _run)
