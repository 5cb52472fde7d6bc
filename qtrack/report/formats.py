"""A view as text for other programs: comma-separated values, and Markdown for a pull request."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from html import escape
from io import StringIO
from typing import Any

from qtrack.report.cells import visible
from qtrack.report.tables import Table
from qtrack.report.view import View

FORMULA = tuple("=+-@\t\r")
"""With what a text begins that a spreadsheet would execute."""
MARKS = "\\`*_[]~|"
LINKS = "@#"
"""GitHub makes links to people and issues of what follows these, unless a comment parts it from them."""


def csv_text(view: View) -> str:
    """The records, with a heading; nothing where a value does not apply, lists with semicolons."""
    out = StringIO()
    names = list(dict.fromkeys(name for record in view.records for name in record))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _value(value) for name, value in record.items()} for record in view.records)
    return out.getvalue()


def _value(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return _value(";".join(map(str, value)))
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def markdown_text(view: View) -> str:
    """The table, what stands below it, and in bold what it comes to."""
    notes = [_escaped(note) for note in view.table.notes]
    parts = [_markdown_table(view.table), *(["  \n".join(notes)] if notes else [])]
    parts += [f"**{_escaped(sentence)}**" for sentence in view.verdict]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rule = ["---:" if column.align == "right" else "---" for column in table.columns]
    lines = [_line(column.title for column in table.columns), f"|{'|'.join(rule)}|"]
    for position in range(len(table.rows) + 1):
        lines += [_line([above, *[""] * (len(rule) - 1)]) for above in table.above(position)]
        lines += map(_line, table.rows[position : position + 1])
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """In one line, and with no sign that Markdown, HTML or GitHub would give a meaning."""
    plain = escape(" ".join(visible(text, keep="\n").split()), quote=False)
    plain = "".join(f"\\{letter}" if letter in MARKS else letter for letter in plain)
    return "".join(f"{letter}<!-- -->" if letter in LINKS else letter for letter in plain)
