"""One bit less for activations, so that accumulators of 16 bits cannot overflow."""

from __future__ import annotations

from qtrack.environment import may_saturate
from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def reduce_range(recipe: Recipe, evidence: Evidence, *, on: bool | None = None) -> Recipe:
    """Give up a bit of each activation, or take it back.

    None: where the engine's accumulators can overflow on this processor (``environment.may_saturate``).
    """
    return recipe.with_activations(reduce_range=may_saturate(recipe.engine) if on is None else on)
