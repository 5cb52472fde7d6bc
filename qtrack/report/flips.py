"""The validation samples that differ between two strategies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtrack.difference import WAYS
from qtrack.errors import InputError
from qtrack.report.cells import NONE
from qtrack.report.tables import Column, Table
from qtrack.report.view import View

if TYPE_CHECKING:
    from qtrack.difference import Difference, Flip


def flips_view(found: Difference) -> View:
    """A row for each sample that flipped, in the split's order; raises InputError where none are shared."""
    if found.unpaired:
        raise InputError(f"{' and '.join(found.titles)} are {found.unpaired}")
    first, second = found.titles
    columns = (Column("sample"), Column("class"), Column(first), Column(second), Column("", "left"))
    counts = ", ".join(f"{len(found.flipped(way))} {way}" for way in WAYS)
    notes = [f"{len(found.flips):,} of {found.first.samples:,} samples differ: {counts} in {second}"]
    if found.flipped("other"):
        notes.append("other: another class with the same score")
    rows = tuple(_row(flip) for flip in found.flips)
    return View(
        f"samples that differ: {first}, {second}",
        Table(columns, rows, tuple(notes)),
        list(map(_record, found.flips)),
    )


def _row(flip: Flip) -> tuple[str, ...]:
    """With both predictions, or where there are no classes both scores."""
    was, now = map(str, flip.predictions) if flip.predictions else (f"{score:.4g}" for score in flip.scores)
    return str(flip.index), NONE if flip.label is None else str(flip.label), was, now, flip.way


def _record(flip: Flip) -> dict[str, Any]:
    predictions = flip.predictions or (None, None)
    return {
        "index": flip.index,
        "label": flip.label,
        "way": flip.way,
        "first_prediction": predictions[0],
        "second_prediction": predictions[1],
        "first_score": flip.scores[0],
        "second_score": flip.scores[1],
    }
