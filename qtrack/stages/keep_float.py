"""Layers that are named, left in float."""

from __future__ import annotations

from collections.abc import Sequence

from qtrack.errors import RecipeError
from qtrack.recipe import Float, Override, Recipe
from qtrack.stages.evidence import Evidence


def keep_float(
    recipe: Recipe, evidence: Evidence, *, layers: Sequence[str] = (), calls: Sequence[str] = ()
) -> Recipe:
    """Leave these modules, and these calls of functions (``block.add#2``), in float."""
    if not layers and not calls:
        raise RecipeError("keep_float: name layers, or calls of functions, that are to stay in float")
    kept = recipe.keeping_float(*layers)
    in_float = (Override(call=name, scheme=Float()) for name in calls)
    return kept.having(overrides=(*kept.overrides, *in_float))
