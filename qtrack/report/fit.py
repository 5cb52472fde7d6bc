"""Tables that must fit a terminal."""

from __future__ import annotations

from collections.abc import Container, Sequence

from qtrack.report.tables import Table


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
