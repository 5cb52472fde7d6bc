"""A reproduction as a table: what drifted, what was compared, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qtrack.report.cells import ingredient
from qtrack.report.tables import Column, Table
from qtrack.reproduction import Unproven

if TYPE_CHECKING:
    from qtrack.reproduction import Made, Reproduction


def reproduction(found: Reproduction) -> Table:
    """Ingredients that are not as recorded, results side by side, the verdict last."""
    columns = (
        Column(found.stage, "left"),
        Column("recorded", "left"),
        Column("now", "left"),
        Column("", "left"),
    )
    rows = tuple((*_ingredients(found), *_results(found), ("verdict", "", "", found.verdict)))
    return Table(columns, rows, tuple(_notes(found)), marked=frozenset([len(rows) - 1]))


def made(found: Made) -> Table:
    """What came out where nothing is recorded to compare with; digests whole, for comparing by hand."""
    rows = (
        ("recipe", found.recipe),
        ("parameters", found.parameters),
        ("behaviour", found.behaviour),
        (found.metric, f"{found.value:.4f} on {found.samples:,} samples"),
    )
    note = "nothing is recorded to compare with: no finished stage of this task in the store has this recipe"
    return Table((Column("executed", "left"), Column("digest", "left")), rows, (note,))


def reproductions(found: Sequence[Reproduction | Unproven]) -> Table:
    """A row for each stage of an experiment."""
    titles = ("stage", "run", "verdict", "first layer", "drifted")
    rows = tuple(_row(one) for one in found)
    failed = tuple(
        f"{one.stage} ({one.run_id[:8]}): {one.error}" for one in found if isinstance(one, Unproven)
    )
    return Table(tuple(Column(title, "left") for title in titles), rows, failed)


def _row(one: Reproduction | Unproven) -> tuple[str, ...]:
    if isinstance(one, Unproven):
        return one.stage, one.run_id[:8], "FAILED", "", ""
    first = one.parted_layers[0] if one.parted_layers else ""
    return one.stage, one.run_id[:8], one.verdict, first, " ".join(drift.name for drift in one.drifted)


def _ingredients(found: Reproduction) -> Iterator[tuple[str, str, str, str]]:
    for drift in found.drifted:
        yield drift.name, ingredient(drift.was), ingredient(drift.now), "drifted"
    for drift in found.restored:
        yield drift.name, ingredient(drift.was), ingredient(drift.now), "set as recorded"
    equal = set(found.ingredients) - set(found.unrecorded) - {drift.name for drift in found.drifted}
    yield f"{len(equal)} ingredients", "", "", "equal"
    if found.unrecorded:
        yield f"{len(found.unrecorded)} ingredients", "", "", "not recorded"


def _results(found: Reproduction) -> Iterator[tuple[str, str, str, str]]:
    answer = {True: "equal", False: "differ"}
    yield "parameters", "", "", answer[found.parameters_equal]
    yield "behaviour", "", "", answer[found.behaviour_equal]
    yield found.metric, f"{found.recorded_value:.4f}", f"{found.value:.4f}", ""
    if found.verdict == "bit-identical":
        return
    yield "samples", "", "", f"{found.differing_samples} differ"
    yield "scales", "", "", _apart(found.scale_difference, "relative")
    yield "zero-points", "", "", _apart(found.zero_point_difference, "steps")
    for layer in found.parted_layers[:1]:
        yield "first layer", "", "", layer


def _apart(difference: float | None, unit: str) -> str:
    if difference is None:
        return "not comparable"
    return f"differ by at most {difference:.2g} ({unit})" if difference else "equal"


def _notes(found: Reproduction) -> Iterator[str]:
    if found.verdict == "equivalent":
        yield f"equivalent: the same on every sample, scales within {found.tolerance:g} of the recorded ones"
    if found.verdict == "different":
        yield _where(found)
    if found.verdict != "bit-identical" and not found.drifted:
        known = " that was recorded" if found.unrecorded else ""
        yield f"no ingredient{known} has drifted"


def _where(found: Reproduction) -> str:
    if not found.parted_layers:
        return "different: the parameters part in no layer that is on record"
    first, others = found.parted_layers[0], len(found.parted_layers) - 1
    return f"different: the first layer to part is {first}" + (f", {others} more follow" if others else "")
