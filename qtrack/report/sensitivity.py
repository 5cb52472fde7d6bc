"""A ranking of layers as tables: what each does to the output, and how alike its measures are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qtrack.report.cells import NONE, number, significant
from qtrack.report.tables import Column, Table

if TYPE_CHECKING:
    from qtrack.ranking import Measure, Ranking, Share

LAYER_COLUMNS = (
    Column("layer", "left"),
    Column("type", "left"),
    Column("params"),
    Column("own SQNR\ndB"),
    Column("at the output\n%"),
    Column("loss\nsquared"),
)
EXACT_COLUMNS = (Column("alone\n%"), Column("back\n%"))
MEANING = "at the output: noise over signal there, to first order; loss: square of a sample's change of it"
EXACT_MEANING = "alone: with all others in float; back: what goes away with it alone in float"
NEGLIGIBLE = 1e-9
"""Of the signal: noise below this is none."""


def screen(found: Ranking) -> Iterator[Table]:
    """The layers, and below them the measures."""
    yield ranked(found)
    if found.correlations():
        yield correlations(found)


def ranked(found: Ranking) -> Table:
    """The layers, the worst first; with the exact measures where they were taken."""
    exact = found.exact_seconds > 0
    columns = LAYER_COLUMNS + (EXACT_COLUMNS if exact else ())
    rows = tuple(_row(share)[: len(columns)] for share in found.worst_first())
    return Table(columns, rows, tuple(_notes(found, exact)))


def correlations(found: Ranking) -> Table:
    """Each measure against those after it."""
    values = {(first, second): value for first, second, value in found.correlations()}
    measures = found.measures()
    columns = (Column("rank\ncorrelation", "left"), *(Column(name) for name in measures[1:]))

    def cell(first: Measure, second: Measure) -> str:
        return number(values[first, second], 2) if (first, second) in values else ""

    rows = tuple((first, *(cell(first, second) for second in measures[1:])) for first in measures[:-1])
    return Table(columns, rows, ("1: the same order of layers; 0: none in common",))


def _row(share: Share) -> tuple[str, ...]:
    return (
        share.layer,
        share.type,
        number(share.params),
        _sqnr(share.own),
        _percent(share.output),
        _figure(share.loss),
        _percent(share.alone),
        _percent(share.back),
    )


def _notes(found: Ranking, exact: bool) -> Iterator[str]:
    yield MEANING
    if exact:
        yield EXACT_MEANING
    forward, seconds = found.forward_samples, found.seconds
    swept = _cost(forward - found.exact_forward_samples, seconds - found.exact_seconds)
    yield f"{number(found.samples)} calibration samples, all layers in one sweep: {swept}"
    if exact:
        yield f"one layer at a time: {_cost(found.exact_forward_samples, found.exact_seconds)}"


def _cost(forward_samples: int, seconds: float) -> str:
    return f"{number(forward_samples)} samples forward, {seconds:.1f} s"


def _sqnr(noise: float) -> str:
    if not math.isfinite(noise):
        return NONE
    return number(-10 * math.log10(noise), 1) if noise > NEGLIGIBLE else "exact"


def _percent(share: float | None) -> str:
    return _figure(None if share is None else 100 * share)


def _figure(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    return significant(value) if abs(value) >= 0.001 else f"{value:.1e}" if value else "0"
