"""Two recorded stages as a table of what differs, and as a table of what each difference does alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from qtrack.difference import MOVED_DB, WAYS
from qtrack.report.cells import NONE, Scale, ingredient, number
from qtrack.report.tables import Column, Table

if TYPE_CHECKING:
    from qtrack.difference import Difference, Flip, Group, MovedLayer, Shift, Way
    from qtrack.explanation import Execution, Explanation

MOST = 10
"""Layers and classes that are listed."""
FEW = 3
"""Samples that are listed for each way to flip."""
Row = tuple[str, str, str, str]


def equality(found: Difference) -> str:
    """One line for two runs that differ in nothing."""
    first, second = found.titles
    silent = len(found.unrecorded)
    known = f"everything on record; {silent} ingredients are recorded of one only" if silent else "everything"
    return f"{first} and {second} are equal in {known} ({found.first.samples:,} validation samples)"


def difference(found: Difference) -> Table:
    """What went in, then what came out, each kind under its name."""
    first, second = found.titles
    columns = (
        Column("", "left"),
        Column("", "left"),
        Column(first, "left"),
        Column(second, "left"),
        Column("", "left"),
    )
    groups = {
        "recipe": list(_recipe(found)),
        **{name: list(_group(group)) for name, group in found.ingredients.items()},
        "model": list(_model(found)),
        "layers": list(_layers(found)),
        "samples": list(_samples(found)),
        found.second.metric: [_metric(found)],
    }
    rows = [(name if i == 0 else "", *row) for name, group in groups.items() for i, row in enumerate(group)]
    return Table(columns, tuple(rows), tuple(_notes(found)), marked=frozenset([len(rows) - 1]))


def _recipe(found: Difference) -> Iterator[Row]:
    for field, was, now in found.recipe:
        yield field, NONE if was is None else was, NONE if now is None else now, ""
    if not found.recipe:
        yield "", "", "", "equal"


def _group(group: Group) -> Iterator[Row]:
    for drift in group.differ:
        yield drift.name, ingredient(drift.was), ingredient(drift.now), ""
    if group.unrecorded:
        yield f"{len(group.unrecorded)} ingredients", "", "", "not recorded in one of them"
    if not group.differ and not group.unrecorded:
        yield "", "", "", "equal" if group.equal else "not recorded"


def _model(found: Difference) -> Iterator[Row]:
    answer = {True: "equal", False: "differ"}
    yield "parameters", "", "", answer[found.parameters_equal]
    yield "behaviour", "", "", answer[found.behaviour_equal]


def _layers(found: Difference) -> Iterator[Row]:
    if not found.layers:
        yield "", "", "", "none moved"
        return
    yield f"{len(found.layers)} moved", "", "", "own SQNR, dB"
    for layer in found.layers[:MOST]:
        was, now = (number(value, 1) for value in layer.own_sqnr_db)
        yield layer.layer, was, now, _moved(layer)


def _moved(layer: MovedLayer) -> str:
    was, now = (NONE if dtype is None else dtype for dtype in layer.dtype)
    change = layer.own_sqnr_db_change
    if was != now:
        return f"{was} > {now}"
    if change is None or abs(change) < MOVED_DB:
        return "other scales or weights"
    return _signed(number(change, 1))


def _samples(found: Difference) -> Iterator[Row]:
    if found.unpaired or not found.flips:
        yield "", "", "", found.unpaired or "none flipped"
        return
    counts = {way: len(found.flipped(way)) for way in WAYS}
    yield f"{len(found.flips)} of {found.first.samples:,} flipped", "", "", _counted(counts)
    for way in WAYS:
        yield from (_flip(flip) for flip in found.flipped(way)[:FEW])
    for label, of_class in list(found.by_class().items())[:MOST]:
        yield f"all of class {label}", "", "", _counted(of_class)


def _counted(counts: Mapping[Way, int]) -> str:
    return ", ".join(f"{count} {way}" for way, count in counts.items() if count)


def _flip(flip: Flip) -> Row:
    """With both predictions, or where there are no classes both scores."""
    was, now = map(str, flip.predictions) if flip.predictions else (f"{score:.4g}" for score in flip.scores)
    label = "" if flip.label is None else f", class {flip.label}"
    return f"sample {flip.index}{label}", was, now, flip.way


def _metric(found: Difference) -> Row:
    first, second = found.first, found.second
    scale = Scale.of((first.value, second.value), max(first.samples, second.samples))
    said = found.unpaired if found.shift is None else f"{_shift(found.shift, scale)} {scale.difference_unit}"
    return scale.unit, scale.text(first.value), scale.text(second.value), said.strip()


def _shift(shift: Shift, scale: Scale) -> str:
    low, high = scale.text(shift.low), scale.text(shift.high)
    return f"{_signed(scale.text(shift.change))} [{low}, {high}]"


def _signed(text: str) -> str:
    return text if text.startswith("-") or not text.strip("0.,") else f"+{text}"


def _notes(found: Difference) -> Iterator[str]:
    if len(found.layers) > MOST:
        runs = f"{found.first.run_id[:8]} {found.second.run_id[:8]}"
        yield f"{len(found.layers) - MOST} more layers; qtrack layers {runs} shows all"
    if any(flip.way == "other" for flip in found.flips):
        yield "other: another class with the same score"
    if len(found.by_class()) > MOST:
        yield f"{len(found.by_class()) - MOST} more classes; --json has all"
    if found.shift is not None:
        yield f"{found.second.metric}: with the 95% interval over the same {found.first.samples:,} samples"


def explanation(found: Explanation, metric: str, samples: int) -> Table:
    """Each swap with its share of the recorded change, what they do not explain, and the sum."""
    scale = Scale.of((found.first.value, found.second.value), samples)
    columns = (
        Column("executed now", "left"),
        Column(f"{metric}\n{scale.unit}"),
        Column(f"change [95%]\n{scale.difference_unit}", "left"),
        Column("share\n%"),
    )
    rows = (
        (found.first.name, scale.text(found.first.value), "", ""),
        _executed(found.second, found.second.name, scale, found),
        *(_executed(swap, f"with {swap.name}", scale, found) for swap in found.swaps),
        _remainder("interaction of the swaps", found.interaction, scale, found),
        _remainder("not at hand", found.beyond, scale, found),
        _remainder("recorded change", found.recorded_change, scale, found),
    )
    return Table(columns, rows, tuple(_remarks(found)), marked=frozenset([len(rows) - 1]))


def _executed(one: Execution, name: str, scale: Scale, found: Explanation) -> tuple[str, str, str, str]:
    return name, scale.text(one.value), _shift(one.shift, scale), _percent(one.shift.change, found)


def _remainder(name: str, change: float, scale: Scale, found: Explanation) -> tuple[str, str, str, str]:
    return name, "", _signed(scale.text(change)), _percent(change, found)


def _percent(change: float, found: Explanation) -> str:
    share = found.share(change)
    return NONE if share is None else number(100 * share)


def _remarks(found: Explanation) -> Iterator[str]:
    for skipped in found.skipped:
        yield f"not swapped alone, and so part of the interaction: {skipped.name}: {skipped.reason}"
    for one in found.not_at_hand:
        sides = [name for name, value in _sides(found, one.was, one.other) if value == one.now]
        yield f"not at hand: {one.name}, now as in {sides[0] if sides else 'neither'}"
    if found.second.shift.low <= 0 <= found.second.shift.high:
        yield "the change between both executions may be none at all: shares say little"
    if found.drifted_since:
        yield f"drifted since both were recorded: {', '.join(found.drifted_since)}"


def _sides(found: Explanation, was: str, other: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (found.first.name, was), (found.second.name, other)
