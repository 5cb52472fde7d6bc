"""Tables as cells of text: which columns, in which units. How they are drawn is the command line's affair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from qtrack.report.cells import NONE, bar, number
from qtrack.report.sources import Row, main_sources, source_note, worst_first

MARK = "*"


class Column(NamedTuple):
    """A column's heading, of one or two lines, and the side on which its cells stand."""

    title: str
    align: Literal["left", "right"] = "right"


class Table(NamedTuple):
    """Cells of text with what belongs below them."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    headings: tuple[tuple[int, str], ...] = ()
    """Lines that stand above the row of this position."""
    marked: frozenset[int] = frozenset()
    """Positions of rows that stand out; a sign among their cells says so where there is no colour."""

    def above(self, position: int) -> list[str]:
        """Lines that stand above the row of this position; those at the end stand below the last one."""
        return [line for place, line in self.headings if place == position]

    @property
    def width(self) -> int:
        """Of the cells and headings, one space between columns."""
        cells = [tuple(column.title for column in self.columns), *self.rows]
        widths = (max(map(_width, column)) for column in zip(*cells, strict=True))
        return sum(widths) + len(self.columns) - 1


def _width(cell: str) -> int:
    return max(map(len, cell.splitlines()), default=0)


def layers(rows: Sequence[Row], limit: int | None = None) -> Table:
    """The layer table, the largest share of the error first; layers in float follow in their order.

    The main sources of error are marked.
    """
    columns = (
        Column("#"),
        Column("", "left"),
        Column("layer", "left"),
        Column("type", "left"),
        Column("runs in", "left"),
        Column("own SQNR\ndB", "left"),
        Column("accumulated\ndB", "left"),
        Column("weight\ndB"),
        Column("saturated\n%"),
        Column("params"),
    )
    ranked, sources = worst_first(rows), main_sources(rows)
    cells = tuple(
        (
            str(row["index"]),
            MARK if row["layer"] in sources else "",
            row["layer"],
            row["type"],
            row["dtype"],
            _decibels(row["own_sqnr_db"]),
            _decibels(row["sqnr_db"]),
            number(row["weight_sqnr_db"], 1),
            number(None if row["saturation"] is None else 100 * row["saturation"], 1),
            number(row["params"]),
        )
        for row in ranked[:limit]
    )
    marked = frozenset(i for i, row in enumerate(ranked[:limit]) if row["layer"] in sources)
    return Table(columns, cells, tuple(_layer_notes(rows, limit)), marked=marked)


def _layer_notes(rows: Sequence[Row], limit: int | None) -> Iterable[str]:
    yield from _left_out(len(rows), limit)
    sources = len(main_sources(rows))
    if sources:
        yield f"{MARK} {source_note(sources)}"
    yield "SQNR: signal to quantization noise, more is better; bars span 0 to 60 dB"


def moved(pairs: Sequence[Row], names: tuple[str, str], limit: int | None = None) -> Table:
    """Two runs' layers, the largest change of the own share first."""
    columns = (
        Column("#"),
        Column("layer", "left"),
        Column("runs in", "left"),
        Column(f"own SQNR, dB\n{names[0]} > {names[1]}"),
        Column("change"),
        Column(f"accumulated, dB\n{names[0]} > {names[1]}"),
        Column("change"),
    )
    cells = tuple(
        (
            str(pair["index"]),
            pair["layer"],
            _from_to(pair["dtype"]),
            _two(pair["own_sqnr_db"]),
            _signed(pair["own_sqnr_db_change"]),
            _two(pair["sqnr_db"]),
            _signed(pair["sqnr_db_change"]),
        )
        for pair in pairs[:limit]
    )
    return Table(columns, cells, tuple(_left_out(len(pairs), limit)))


PAIRED = ("dtype", "sqnr_db", "own_sqnr_db", "weight_sqnr_db", "cosine", "nmse", "saturation")


def paired_layers(before: Sequence[Row], after: Sequence[Row]) -> list[dict[str, Any]]:
    """One row per layer of either run, with both values; first those whose type changed, then by change."""
    by_layer = [{row["layer"]: row for row in rows} for rows in (before, after)]
    order = dict.fromkeys((*by_layer[1], *by_layer[0]))
    return sorted((_pair(layer, *(rows.get(layer) for rows in by_layer)) for layer in order), key=_most_moved)


def _most_moved(pair: Row) -> tuple[bool, bool, float, int]:
    change = pair["own_sqnr_db_change"]
    return len(set(pair["dtype"])) == 1, change is None, -abs(change or 0.0), pair["index"]


def _pair(layer: str, before: Row | None, after: Row | None) -> dict[str, Any]:
    known = after or before or {}
    pair: dict[str, Any] = {"index": known["index"], "layer": layer, "type": known["type"]}
    for field in PAIRED:
        pair[field] = [row[field] if row else None for row in (before, after)]
    for field in ("own_sqnr_db", "sqnr_db"):
        first, second = pair[field]
        pair[f"{field}_change"] = None if first is None or second is None else second - first
    return pair


def _left_out(count: int, limit: int | None) -> Iterable[str]:
    if limit is not None and count > limit:
        yield f"{count - limit} more layers; --limit {count} shows all"


def _decibels(value: float | None) -> str:
    return f"{number(value, 1):>5} {bar(value)}".rstrip()


def _from_to(values: Sequence[Any]) -> str:
    first, second = (NONE if value is None else str(value) for value in values)
    return first if first == second else f"{first} > {second}"


def _two(values: Sequence[float | None]) -> str:
    return f"{number(values[0], 1):>5} > {number(values[1], 1):>5}"


def _signed(value: float | None) -> str:
    text = number(value, 1)
    return f"+{text}" if value and value > 0 and text != "0.0" else text
