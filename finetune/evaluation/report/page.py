"""The report as one HTML page: self-contained, without scripts, every text of a file escaped."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from mose.files.streams import presentable

# A browser refuses what a file's text might still smuggle in: scripts, frames, and anything from another address.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { --ink: #1f2933; --soft: #5b6874; --line: #dde3e9; --paper: #fff; --back: #f4f6f8; --accent: #31688e; --warn: #8a3a12; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color: var(--ink);
  background: var(--back); margin: 0; }
header { background: linear-gradient(100deg, #2d1e5f, #31688e 60%, #35b779); color: #fff; padding: 1.6em 0 1.4em; }
header h1 { margin: 0 0 .15em; font-size: 1.7em; font-weight: 650; }
header p { margin: 0; opacity: .88; }
.wide { max-width: 1240px; margin: 0 auto; padding: 0 1.4em; }
nav { background: var(--paper); border-bottom: 1px solid var(--line); position: sticky; top: 0; z-index: 1; }
nav a { display: inline-block; padding: .65em 1.2em .6em 0; color: var(--accent); text-decoration: none; font-weight: 550; }
nav a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: .9em; margin: 1.4em 0 0; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: .75em .95em; }
.tile b { display: block; font-size: 1.42em; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .86em; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 1.2em 1.5em 1.4em;
  margin: 1.2em 0; scroll-margin-top: 3.2em; }
h2 { font-size: 1.28em; margin: 0 0 .2em; font-weight: 650; }
h3 { font-size: 1.02em; margin: 1.3em 0 .35em; font-weight: 620; }
p { margin: .3em 0 .8em; max-width: 76em; }
.soft, figcaption { color: var(--soft); font-size: .9em; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1.1em 1.6em; align-items: start; }
figure { margin: .6em 0 0; min-width: 0; }
figure.whole { grid-column: 1 / -1; }
figure svg { max-width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88em; font-variant-numeric: tabular-nums; margin: .3em 0; }
th, td { padding: .28em .7em; text-align: right; border-bottom: 1px solid #edf0f3; vertical-align: top; white-space: nowrap; }
th { color: var(--soft); font-weight: 560; border-bottom: 1px solid #c8d0d8; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 10em;
  max-width: 26em; overflow-wrap: break-word; }
tr.rule td { border-bottom: 1px solid #aab4be; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts td:first-child { color: var(--soft); min-width: 15em; }
ul { margin: .3em 0 .8em; padding-left: 1.2em; }
.short { border-left: 4px solid #d98b3a; background: #fdf6ee; padding: .6em 1em; margin: .9em 0; color: var(--warn); }
.good { border-left: 4px solid #35b779; background: #f0faf4; padding: .6em 1em; margin: .9em 0; color: #1d6a43; }
.short ul, .good ul { margin: .2em 0; }
details { margin: .6em 0; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--back); border: 1px solid var(--line); border-radius: 6px; padding: .8em 1em; overflow-x: auto;
  font: 12.5px/1.45 ui-monospace, Menlo, Consolas, monospace; }
footer { color: var(--soft); font-size: .86em; padding: .4em 0 2.2em; }
@media print { body { background: #fff; font-size: 11px; } nav { display: none; }
  section { break-inside: avoid; border: 0; padding: 0; }
  header { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
@media (max-width: 560px) { .figures { grid-template-columns: 1fr; } section { padding: 1em; } }
""".strip()


@dataclass(frozen=True)
class Tile:
    """One number of the head of the page, and what it is."""

    value: str
    name: str


@dataclass(frozen=True)
class Section:
    """One section; `parts` are HTML from the functions of this module."""

    key: str
    title: str
    lead: str
    parts: Sequence[str]


def page(title: str, subtitle: str, tiles: Sequence[Tile], sections: Sequence[Section], footer: str) -> str:
    """The whole page. Titles, tiles and leads are escaped here; so are all texts by the functions below."""
    links = "".join(f'<a href="#{section.key}">{text(section.title)}</a>' for section in sections)
    heads = "".join(f'<div class="tile"><b>{text(tile.value)}</b><span>{text(tile.name)}</span></div>' for tile in tiles)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>",
        f'<header><div class="wide"><h1>{text(title)}</h1><p>{text(subtitle)}</p></div></header>',
        f'<nav><div class="wide">{links}</div></nav>',
        f'<main class="wide"><div class="tiles">{heads}</div>',
        *(_section(section) for section in sections),
        f"</main><footer><div class='wide'>{text(footer)}</div></footer></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _section(section: Section) -> str:
    body = "\n".join(part for part in section.parts if part)
    return f'<section id="{section.key}"><h2>{text(section.title)}</h2>{paragraph(section.lead)}{body}</section>'


def text(words: str) -> str:
    """Words of a file as text of the page: no markup, no character that controls a terminal, no password of a URL."""
    return html.escape(presentable(words))


def paragraph(words: str, style: str = "") -> str:
    """A paragraph; empty without words."""
    attribute = f' class="{style}"' if style else ""
    return f"<p{attribute}>{text(words)}</p>" if words else ""


def heading(words: str) -> str:
    """A heading inside a section."""
    return f"<h3>{text(words)}</h3>"


def figures(*parts: str) -> str:
    """Figures, or tables inside `cell`, side by side where there is room."""
    found = "".join(part for part in parts if part)
    return f'<div class="figures">{found}</div>' if found else ""


def figure(svg: str, caption: str = "", whole: bool = False) -> str:
    """A picture made by `charts.draw`, with its caption; `whole` gives it the full width."""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f"<figure{' class=whole' if whole else ''}>{svg}{below}</figure>"


def cell(title: str, *parts: str) -> str:
    """A headed part of the page, shown next to figures; empty where its parts are."""
    body = "".join(parts)
    return f"<div>{heading(title)}{body}</div>" if body else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], rules: Sequence[int] = ()) -> str:
    """A table; a line is drawn below each row whose number is in `rules`."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr{' class=rule' if number in rules else ''}>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>' if rows else ""


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    body = "".join(f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>" for name, value in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>' if rows else ""


def rich_table(source: Table) -> str:
    """A table of the console as one of the page."""
    rows = list(zip(*(list(map(str, column.cells)) for column in source.columns), strict=True))
    rules = [number for number, row in enumerate(source.rows) if row.end_section]
    return table([str(column.header) for column in source.columns], rows, rules)


def remarks(lines: Sequence[str], style: str) -> str:
    """A box of lines: `short` for what falls short, `good` for what does not."""
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f'<div class="{style}"><ul>{items}</ul></div>' if lines else ""


def folded(title: str, content: str) -> str:
    """Text of a file, shown when asked for."""
    return f"<details><summary>{text(title)}</summary><pre>{text(content)}</pre></details>" if content else ""
