"""Results of `make quickstart` as Markdown.

`python docs/quickstart_table.py` writes those of ./quickstart into README.md, between its two markers;
`python docs/quickstart_table.py FOLDER ...` prints those of other quickstarts, one after the other.
"""

import re
import sys
from datetime import datetime, timezone
from pathlib import Path

import yaml
from rich.table import Table

from finetune.evaluation.report.held_out import read_held_out, read_run_metrics
from finetune.evaluation.report.table import notes, report_table
from finetune.evaluation.results import read_evaluation
from mose.dataset.manifest import read_manifest
from mose.files.atomic_file import write_text

ROOT = Path(__file__).resolve().parents[1]
MARKERS = re.compile(r"(<!-- quickstart: begin -->\n).*(<!-- quickstart: end -->)", re.S)


def markdown(table: Table) -> str:
    """A rich table as a Markdown table."""
    rows = [[str(column.header) for column in table.columns], ["---"] * len(table.columns)]
    rows += [list(row) for row in zip(*(list(map(str, column.cells)) for column in table.columns), strict=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def results(quickstart: Path) -> str:
    """Date, duration, table and notes of one finished quickstart."""
    run = quickstart / "run"
    metrics = read_run_metrics(run)
    evaluation, control = read_evaluation(quickstart / "scores"), read_evaluation(quickstart / "scores_from_random")
    start = read_evaluation(quickstart / "scores_from_start")
    held_out = read_held_out(run, metrics)
    config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    duration = quickstart / "duration_seconds"
    date = datetime.fromtimestamp(duration.stat().st_mtime, timezone.utc).date()
    minutes = int(duration.read_text("utf-8")) / 60
    packages = read_manifest(quickstart / "data").statistics["repositories"]
    model, tokens = config["model"], metrics[-1]["consumed_tokens"] / 1e6
    heading = (
        f"On {date}, 2 CPU cores, seed {config['seed']}, {packages} packages: {minutes:.0f} minutes without the installation "
        f"({model['num_layers']} layers of width {model['width']}, {tokens:.1f}M tokens).\n\n"
    )
    lines = "".join(f"- {line}\n" for line in notes(held_out, evaluation, control, start))
    return f"{heading}{markdown(report_table(held_out, evaluation, control, start))}\n{lines}"


def main() -> None:
    """Print the results of the folders that are given, or replace what stands between the markers."""
    if folders := sys.argv[1:]:
        print("\n".join(results(Path(folder)) for folder in folders), end="")
        return
    readme = ROOT / "README.md"
    text, count = MARKERS.subn(lambda found: found[1] + results(ROOT / "quickstart") + found[2], readme.read_text("utf-8"))
    if count != 1:
        sys.exit(f"{readme}: expected one pair of markers <!-- quickstart: begin -->, <!-- quickstart: end -->")
    write_text(readme, text)


if __name__ == "__main__":
    main()
