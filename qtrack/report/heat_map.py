"""Each layer's own error under several strategies, as cells to be coloured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from qtrack.report.cells import number
from qtrack.report.sources import Row

MOST_LAYERS = 200
LIMITS_DB = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)
"""Where one shade ends and the next begins."""


class Cell(NamedTuple):
    """A value and its shade: 0 for the worst, None where there is none."""

    text: str
    shade: int | None


class HeatMap(NamedTuple):
    """A row of cells for each layer, in the order of execution."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...]


def heat_map(titles: Sequence[str], tables: Sequence[Sequence[Row]]) -> HeatMap | None:
    """Own SQNR, layers by strategies; those that compared no layer are left out, None where all are."""
    shown = [i for i, table in enumerate(tables) if any(_own(row) is not None for row in table)]
    if not shown:
        return None
    by_layer = [{row["layer"]: row for row in tables[i]} for i in shown]
    names = _worst(by_layer)
    rows = tuple((name, tuple(_cell(rows.get(name)) for rows in by_layer)) for name in names)
    return HeatMap(tuple(titles[i] for i in shown), rows, tuple(_notes(by_layer, names)))


def _own(row: Row) -> Any:
    return row["own_sqnr_db"]


def _worst(by_layer: Sequence[dict[str, Row]]) -> list[str]:
    """Names in the order of execution; of very many the worst ones."""
    found = {name: row for rows in reversed(by_layer) for name, row in rows.items()}
    ranked = sorted(found, key=lambda name: _lowest(name, by_layer))[:MOST_LAYERS]
    return sorted(ranked, key=lambda name: found[name]["index"])


def _lowest(name: str, by_layer: Sequence[dict[str, Row]]) -> float:
    known = (_own(rows[name]) for rows in by_layer if name in rows)
    return min((own for own in known if own is not None), default=float("inf"))


def _cell(row: Row | None) -> Cell:
    if row is None:
        return Cell("", None)
    own = _own(row)
    if own is None:
        return Cell("float" if row["dtype"] == "float32" else "exact", None)
    return Cell(number(own, 1), sum(own >= limit for limit in LIMITS_DB))


def _notes(by_layer: Sequence[dict[str, Row]], names: Sequence[str]) -> Iterator[str]:
    total = len({name for rows in by_layer for name in rows})
    if total > len(names):
        yield f"the {len(names)} worst of {total} layers"
    yield "own SQNR in dB: the error of a layer alone, with everything before it in float; more is better"
