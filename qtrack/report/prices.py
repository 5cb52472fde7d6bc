"""The price table of a ladder: layer by layer what each rung costs, and which one was taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from qtrack.report.cells import number, significant
from qtrack.report.sources import Row
from qtrack.report.tables import MARK, Column, Table
from qtrack.search.prices import AS_IT_IS, CONVERSION, REST

EXACT = "exact"
COLUMNS = (
    Column("layer", "left"),
    Column("", "left"),
    Column("rung", "left"),
    Column("runs in", "left"),
    Column("own SQNR\ndB"),
    Column("ms"),
    Column("kB"),
)


def prices(rows: Sequence[Row]) -> Table:
    """Layers in execution order with their rungs, then the tensors that may have to be converted."""
    priced = [row for row in rows if row["type"] not in (CONVERSION, REST)]
    converted = [row for row in rows if row["type"] == CONVERSION]
    cells = (*_cells(priced), *_cells(converted))
    return Table(COLUMNS, cells, tuple(_notes(rows)), ((len(priced), "conversions"),) if converted else ())


def _cells(rows: Sequence[Row]) -> tuple[tuple[str, ...], ...]:
    """A layer's name stands with the first of its rungs."""
    groups = (list(group) for _, group in groupby(rows, key=lambda row: row["layer"]))
    named = ((row["layer"] if row is group[0] else "", row) for group in groups for row in group)
    return tuple((name, *_rung(row)) for name, row in named)


def _rung(row: Row) -> tuple[str, ...]:
    """A conversion makes no noise of its own, and stores nothing: it is in the layers around it."""
    is_layer = row["type"] != CONVERSION
    sqnr = EXACT if row["sqnr_db"] is None else number(row["sqnr_db"], 1)
    return (
        MARK if row["chosen"] else "",
        row["rung"],
        row["dtype"] or "",
        sqnr if is_layer else "",
        number(row["milliseconds"], 3),
        significant(row["bytes"] / 1000) if is_layer and row["bytes"] else "",
    )


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    chosen = [row for row in rows if row["chosen"]]
    moved = [row for row in chosen if row["dtype"] and row["rung"] != AS_IT_IS]
    milliseconds = sum(row["milliseconds"] for row in chosen)
    size = sum(row["bytes"] for row in chosen) / 1000
    rest = sum(row["milliseconds"] for row in rows if row["type"] == REST)
    yield f"{MARK} chosen: {len(moved)} of {len({row['layer'] for row in rows if row['dtype']})} layers moved"
    yield (
        f"predicted: {significant(milliseconds)} ms, {significant(rest)} of them outside the layers, "
        f"and {significant(size)} kB"
    )
