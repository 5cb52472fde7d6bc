"""Observers of activations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qtrack.outcome import LayerRow
from qtrack.recipe import Call, Module, Override, Recipe, Static
from qtrack.stages.evidence import Evidence

Kind = Literal["best", "min_max", "moving_average", "histogram", "percentile"]
ESTIMATED = ("min_max", "percentile", "histogram")
"""What the layer table has an estimate for."""


def observers(
    recipe: Recipe,
    evidence: Evidence,
    *,
    activation: Kind = "best",
    min_gain_db: Annotated[float, Field(ge=0)] = 1.0,
) -> Recipe:
    """Observe activations otherwise: everywhere, or by layer as the estimates of the stage before say.

    ``best`` overrides the layers that gain at least so many decibels by it; all others stay as they are.
    """
    if activation != "best":
        return recipe.with_activations(observer=activation)
    new = (_override(recipe, row, min_gain_db) for row in evidence.starting_point().outcome.layers)
    return recipe.having(overrides=(*recipe.overrides, *(override for override in new if override)))


def _override(recipe: Recipe, row: LayerRow, min_gain_db: float) -> Override | None:
    """A layer's scheme with the best kind of observer, if that gains enough over the one it has.

    A second call of a module has no scheme of its own, and one without weights that of the default.
    """
    is_call = row.type[:1].islower()
    scheme = recipe.scheme_for(_lineage(row, is_call=is_call))
    if not isinstance(scheme, Static) or not (is_call or (row.params and "#" not in row.layer)):
        return None
    known = {kind: found for kind in ESTIMATED if (found := getattr(row, f"{kind}_db")) is not None}
    best = max(known, key=lambda kind: known[kind], default=None)
    if (
        best is None
        or known[best] - known.get(scheme.activation.observer.kind, known["min_max"]) < min_gain_db
    ):
        return None
    better = scheme.having(activation=scheme.activation.having(observer=best))
    return Override(call=row.layer, scheme=better) if is_call else Override(layer=row.layer, scheme=better)


def _lineage(row: LayerRow, *, is_call: bool) -> list[Module | Call]:
    """From the root down to the layer; the types of what is around it are not on record."""
    parts = row.layer.split(".")
    around = [Module(".".join(parts[:end]), "") for end in range(1, len(parts))]
    return [*around, Call(row.layer, row.type) if is_call else Module(row.layer, row.type)]
