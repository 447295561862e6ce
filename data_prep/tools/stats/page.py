"""`mose-data stats --output page.html`: renders the sections as one self-contained page, also for printing."""

import html
from collections.abc import Sequence

from data_prep.tools.stats.charts import Section
from data_prep.tools.stats.drawing import draw_svg
from mose.files.streams import escaped

_STYLE = """
body { font: 15px/1.45 sans-serif; color: #222; background: #fff; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: .2em; }
h2 { font-size: 1.15em; margin: 0 0 .2em; }
section { border-top: 1px solid #d5d8dc; padding: 1em 0; break-inside: avoid; }
.figure { display: flex; flex-wrap: wrap; gap: 1.5em; align-items: flex-start; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .87em; font-variant-numeric: tabular-nums; }
th, td { padding: .15em .7em; text-align: right; border-bottom: 1px solid #eceef0; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; overflow-wrap: anywhere; max-width: 24em; }
p { margin: .2em 0 .8em; }
.notes { color: #8a3a12; }
@media print { body { margin: 0; font-size: 11px; } }
""".strip()


def stats_page(title: str, lines: Sequence[str], cautions: Sequence[str], sections: Sequence[Section]) -> str:
    """The page: `lines` describe the data set, `cautions` are warnings. Escapes every name."""
    notes = "".join(f"<li>{_escaped(line)}</li>" for line in cautions)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{_escaped(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_escaped(title)}</h1>",
        *(f"<p>{_escaped(line)}</p>" for line in lines),
        f'<ul class="notes">{notes}</ul>' if notes else "",
        *(_section(section) for section in sections),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _section(section: Section) -> str:
    chart = f"<div>{draw_svg(section.chart)}</div>" if section.chart else ""
    text = f"<h2>{_escaped(section.title)}</h2><p>{_escaped(section.text)}</p>"
    return f'<section>{text}<div class="figure">{chart}{_table(section)}</div></section>'


def _table(section: Section) -> str:
    head = "".join(f"<th>{_escaped(cell)}</th>" for cell in section.header)
    body = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in section.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _escaped(text: str) -> str:
    return html.escape(escaped(text))
