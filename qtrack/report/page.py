"""A figure in the formats that people open: a picture, or a page that holds it and its table.

The page is one file that loads nothing, neither scripts nor fonts nor pictures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from io import BytesIO

import matplotlib
from matplotlib.figure import Figure

from qtrack.report.cells import visible
from qtrack.report.tables import Table

MARKED = ' class="marked"'
VIEWPORT = '<meta name="viewport" content="width=device-width, initial-scale=1">'
STYLE = """\
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; background: #fff; color: #22262b;
       font: 15px/1.45 system-ui, sans-serif; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1.5rem 0 0.75rem; font: 13px/1.5 ui-monospace, monospace; }
th, td { padding: 0.1rem 0.6rem; text-align: left; white-space: pre; }
th { border-bottom: 1px solid #8c9196; vertical-align: bottom; }
tr:hover td { background: #f1f3f5; }
tr.marked td { font-weight: bold; }
tr.heading td { padding-top: 0.5rem; color: #5a6068; }
.right { text-align: right; }
.wide { overflow-x: auto; }
p { margin: 0.2rem 0; font-size: 13px; }
"""


def _png(figure: Figure, title: str, table: Table) -> bytes:
    return _saved(figure, "png")


def _svg(figure: Figure, title: str, table: Table) -> bytes:
    return drawing(figure).encode()


def _html(figure: Figure, title: str, table: Table) -> bytes:
    return page(title, table, drawing(figure)).encode()


FORMATS: dict[str, Callable[[Figure, str, Table], bytes]] = {".png": _png, ".svg": _svg, ".html": _html}
"""Contents of a file by the ending of its name."""


def drawing(figure: Figure) -> str:
    """An SVG; the comments that matplotlib puts in it hold each text as it was given."""
    return visible(_saved(figure, "svg").decode(), keep="\n\t")


def _saved(figure: Figure, format: str) -> bytes:
    """The same bytes each time: no date, and names in an SVG by their content."""
    out = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "qtrack"}):
        figure.savefig(out, format=format, metadata={"Date": None} if format == "svg" else None)
    return out.getvalue()


def _text(text: str) -> str:
    return escape(visible(text, keep="\n"))


def page(title: str, table: Table, svg: str = "", sentences: Sequence[str] = ()) -> str:
    """An HTML page with a drawing, if there is one, the table below it, and what it comes to."""
    notes = "".join(f"<p>{_text(note)}</p>\n" for note in table.notes)
    verdict = "".join(f"<p><strong>{_text(sentence)}</strong></p>\n" for sentence in sentences)
    drawn = f'<div role="img" aria-label="{_text(title)}">\n{inline(svg)}</div>\n' if svg else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{VIEWPORT}\n'
        f"<title>{_text(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f'{drawn}<div class="wide">\n{html_table(table)}</div>\n{notes}{verdict}</body>\n</html>\n'
    )


def inline(svg: str) -> str:
    """An SVG as it stands within a page: without its prolog and metadata."""
    return re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def html_table(table: Table) -> str:
    """A table whose cells are text, whatever they hold."""
    heading = _cells("th", [column.title for column in table.columns], table)
    rows = "".join(_html_row(table, position) for position in range(len(table.rows) + 1))
    return f"<table>\n<thead><tr>{heading}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"


def _html_row(table: Table, position: int) -> str:
    """With the lines that stand above it; at the end, these alone."""
    span = f'<tr class="heading"><td colspan="{len(table.columns)}">'
    above = "".join(f"{span}{_text(line)}</td></tr>\n" for line in table.above(position))
    marked = MARKED if position in table.marked else ""
    rows = table.rows[position : position + 1]
    return above + "".join(f"<tr{marked}>{_cells('td', row, table)}</tr>\n" for row in rows)


def _cells(tag: str, texts: Sequence[str], table: Table) -> str:
    return "".join(
        f'<{tag} class="{column.align}">{_text(text)}</{tag}>'
        for text, column in zip(texts, table.columns, strict=True)
    )
