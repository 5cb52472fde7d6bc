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
STYLE = """\
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; background: #fff; color: #22262b;
       font: 15px/1.45 system-ui, sans-serif; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1.5rem 0 0.75rem; font: 13px/1.5 ui-monospace, monospace; }
th, td { padding: 0.1rem 0.6rem; text-align: left; white-space: pre; }
th { border-bottom: 1px solid #8c9196; vertical-align: bottom; }
tr:hover td { background: #f1f3f5; }
tr.marked td { font-weight: bold; }
.right { text-align: right; }
.wide { overflow-x: auto; }
p { margin: 0.2rem 0; font-size: 13px; }
"""


def _png(figure: Figure, title: str, table: Table) -> bytes:
    return _saved(figure, "png")


def _svg(figure: Figure, title: str, table: Table) -> bytes:
    return _drawing(figure).encode()


def _html(figure: Figure, title: str, table: Table) -> bytes:
    return page(title, _drawing(figure), table).encode()


FORMATS: dict[str, Callable[[Figure, str, Table], bytes]] = {".png": _png, ".svg": _svg, ".html": _html}
"""Contents of a file by the ending of its name."""


def _drawing(figure: Figure) -> str:
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


def page(title: str, svg: str, table: Table) -> str:
    """An HTML page with a drawing and the table below it."""
    notes = "".join(f"<p>{_text(note)}</p>\n" for note in table.notes)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}</title>\n'
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f'<div role="img" aria-label="{_text(title)}">\n{_inline(svg)}</div>\n'
        f'<div class="wide">\n{_html_table(table)}</div>\n{notes}</body>\n</html>\n'
    )


def _inline(svg: str) -> str:
    """An SVG as it stands within a page: without its prolog and metadata."""
    return re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def _html_table(table: Table) -> str:
    heading = _cells("th", [column.title for column in table.columns], table)
    rows = (
        f"<tr{MARKED if position in table.marked else ''}>{_cells('td', row, table)}</tr>\n"
        for position, row in enumerate(table.rows)
    )
    return f"<table>\n<thead><tr>{heading}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>\n"


def _cells(tag: str, texts: Sequence[str], table: Table) -> str:
    return "".join(
        f'<{tag} class="{column.align}">{_text(text)}</{tag}>'
        for text, column in zip(texts, table.columns, strict=True)
    )
