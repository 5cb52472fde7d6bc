"""Drawing tables on a terminal, and as plain text where there is none."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from io import StringIO
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click
from rich.box import Box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from qtrack.report.cells import REPLACED, visible
from qtrack.report.comparison import comparison_view
from qtrack.report.tables import Table

if TYPE_CHECKING:
    from qtrack.ledger import Strategy

STYLES = {
    "yes": "green",
    "no": "red",
    "not sure": "yellow",
    "FAILED": "bold red",
    "KILLED": "bold red",
    "RUNNING": "cyan",
    "fault": "red",
    "remark": "yellow",
}
PLAIN = str.maketrans({"─": "-", "█": "#", "…": "~", REPLACED: "?"} | dict.fromkeys("▏▎▍▌▋▊▉", "#"))
PAGE_WIDTH = 100
"""Where stdout is no terminal."""
RULED = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None where it is none, and nothing needs to fit."""
    return Console().width if sys.stdout.isatty() else None


def page_width() -> int:
    """Columns that sentences are wrapped to."""
    return terminal_width() or PAGE_WIDTH


def strategies(found: Sequence[Strategy], *, as_json: bool) -> None:
    """Print strategies on stdout; what belongs below the table goes to stderr."""
    view = comparison_view(found, terminal_width())
    if as_json:
        print_json(view.records)
    else:
        show(view.table)


def print_json(data: Any) -> None:
    """Print data on stdout as JSON that every reader takes: NaN and infinity become null."""
    click.echo(json.dumps(_finite(data), indent=2, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def show(table: Table) -> None:
    """Print a table on stdout and its notes on stderr."""
    text = drawn(table, color=_colored())
    click.echo(text if _writable(text) else text.translate(PLAIN))
    remark(table.notes)


def show_all(parts: Iterable[str | Table]) -> None:
    """Print sentences and tables one below the other on stdout, the tables with their notes."""
    text = all_drawn(parts, page_width(), color=_colored())
    click.echo(text if _writable(text) else text.translate(PLAIN))


def all_drawn(parts: Iterable[str | Table], width: int, *, color: bool = False) -> str:
    """Sentences and tables as text, sentences and notes in lines of this width."""
    blocks = []
    for part in parts:
        table = part if isinstance(part, Table) else Table((), (), (part,))
        lines = [line for note in table.notes for line in wrap(visible(note), width, subsequent_indent="  ")]
        blocks.append("\n".join([*([drawn(table, color=color)] if table.rows else []), *lines]))
    return "\n\n".join(filter(None, blocks))


def _colored() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def drawn(table: Table, *, color: bool = False) -> str:
    """A table as text, as wide as its cells need."""
    grid = Grid(box=RULED, padding=0, pad_edge=False, show_edge=False, header_style="bold")
    for column in table.columns:
        grid.add_column(_heading(column.title), justify=column.align, vertical="bottom", no_wrap=True)
    for position, row in enumerate(table.rows):
        style = "bold" if position in table.marked else ""
        grid.add_row(*(Text(visible(cell), STYLES.get(cell, "")) for cell in row), style=style)
    out = StringIO()
    console = Console(
        file=out, width=table.width, force_terminal=color, color_system="standard" if color else None
    )
    console.print(grid)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    first = len(lines) - len(table.rows)
    for position, heading in reversed(table.headings):
        lines.insert(first + position, visible(heading))
    return "\n".join(lines)


def _heading(title: str) -> Text:
    return Text(visible(title.rstrip("\n"), keep="\n"))


def _writable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def remark(lines: Iterable[str] | str) -> None:
    """Print lines on stderr."""
    for line in [lines] if isinstance(lines, str) else lines:
        click.echo(visible(line), err=True)
