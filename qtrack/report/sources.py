"""Which layers the error comes from.

A layer's own noise is the energy of its own share of the error over that of its signal, 10^(-SQNR/10). The
*main sources* are the fewest layers, worst first, whose own noise makes up half of the sum over all layers.
That is relative: a network that loses nothing has main sources too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

Row = Mapping[str, Any]

MAIN_SHARE = 0.5


def worst_first(rows: Iterable[Row]) -> list[Row]:
    """Rows by their own share of the error; those without one keep the order of execution, at the end."""
    return sorted(rows, key=lambda r: (r["own_sqnr_db"] is None, r["own_sqnr_db"] or 0.0, r["index"]))


def main_sources(rows: Iterable[Row]) -> tuple[str, ...]:
    """Names of the layers that add most of the error, worst first; none where no layer has its own."""
    ranked = [row for row in worst_first(rows) if row["own_sqnr_db"] is not None]
    sums = list(accumulate(10 ** (-row["own_sqnr_db"] / 10) for row in ranked))
    enough = next((i + 1 for i, total in enumerate(sums) if total >= MAIN_SHARE * sums[-1]), 0)
    return tuple(row["layer"] for row in ranked[:enough])


def source_note(count: int) -> str:
    """What a mark on that many layers means."""
    who = "this layer makes" if count == 1 else f"these {count} layers make"
    return f"{who} up half or more of all layers' own noise"
