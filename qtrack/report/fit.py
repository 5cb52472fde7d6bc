"""Tables that must fit a terminal: without some columns, or with a column's cells on several lines."""

from __future__ import annotations

from collections.abc import Container, Sequence
from textwrap import wrap

from qtrack.report.tables import Table

NARROWEST = 24
"""Letters that a column of sentences needs."""


def fitted(table: Table, width: int | None, spare: Sequence[int]) -> Table:
    """The table without those of its ``spare`` columns, in this order, that do not fit; a note names them."""
    left_out: list[int] = []
    shown = table
    for position in spare:
        if width is None or shown.width <= width:
            break
        left_out.append(position)
        shown = _without(table, left_out)
    if not left_out:
        return table
    names = ", ".join(" ".join(table.columns[i].title.split()) for i in sorted(left_out))
    return shown._replace(notes=(*table.notes, f"left out to fit {width} columns: {names}; --csv has all"))


def _without(table: Table, left_out: Container[int]) -> Table:
    kept = [i for i in range(len(table.columns)) if i not in left_out]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return table._replace(columns=tuple(table.columns[i] for i in kept), rows=rows)


def folded(table: Table, width: int, column: int) -> Table:
    """The table, which has no headings, with this column's sentences on as many rows as they need."""
    widest = max((len(line) for row in table.rows for line in row[column].splitlines()), default=0)
    room = max(min(widest, width - (table.width - widest)), NARROWEST)
    rows: list[tuple[str, ...]] = []
    marked = set()
    for position, row in enumerate(table.rows):
        if position in table.marked:
            marked.add(len(rows))
        lines = [line for part in row[column].splitlines() for line in wrap(part, room)] or [""]
        rows += [
            _with(row if not place else ("",) * len(row), column, line) for place, line in enumerate(lines)
        ]
    return table._replace(rows=tuple(rows), marked=frozenset(marked))


def _with(row: tuple[str, ...], column: int, cell: str) -> tuple[str, ...]:
    return (*row[:column], cell, *row[column + 1 :])
