"""What differs between the recipes of several strategies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import yaml

from qtrack.recipe_diff import OVERRIDES, differing_fields
from qtrack.report.tables import Column, Table
from qtrack.report.titles import titles_of
from qtrack.report.view import View

if TYPE_CHECKING:
    from qtrack.ledger import Strategy
    from qtrack.recipe import Recipe

Group = tuple[str, str | None, list[int]]
"""A field, a value, and the positions of the strategies that have it."""


def recipes_view(strategies: Sequence[Strategy], recipes: Mapping[str, Recipe]) -> View:
    """Fields that differ, each value with the strategies that have it; ``recipes`` are by digest."""
    known = [s for s in strategies if s.recipe_digest in recipes]
    groups = list(_groups([recipes[str(s.recipe_digest)] for s in known]))
    titles = titles_of(known)
    columns = tuple(Column(title, "left") for title in ("field", "value", "strategies"))
    rows = []
    told = [group for group in groups if group[1] is not None]
    for i, (field, value, positions) in enumerate(told):
        again = i > 0 and told[i - 1][0] == field
        named = ", ".join(titles[position] for position in positions)
        rows.append(("" if again else field, _short(field, str(value)), named))
    records = [
        {
            "field": field,
            "value": value,
            "stages": [titles[position] for position in positions],
            "run_ids": [known[position].run_id for position in positions],
        }
        for field, value, positions in groups
    ]
    notes = [] if told else [f"the recipes of these {len(known)} strategies are equal"]
    notes += ["a strategy that is not named has no such field"] if len(told) < len(groups) else []
    return View("what differs between the recipes", Table(columns, tuple(rows), tuple(notes)), records)


def _short(field: str, value: str) -> str:
    """An override that only names a mode as ``blocks.1.project: float``; all else as it stands."""
    if not field.startswith(OVERRIDES):
        return value
    match yaml.safe_load(value):
        case {"layer": str(layer), "scheme": {"mode": str(mode), **rest}} if not rest:
            return f"{layer}: {mode}"
    return value


def _groups(recipes: Sequence[Recipe]) -> Iterator[Group]:
    for field, values in differing_fields(recipes).items():
        for value in dict.fromkeys(values):
            yield field, value, [i for i, other in enumerate(values) if other == value]
