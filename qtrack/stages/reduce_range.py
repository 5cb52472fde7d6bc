"""One bit less for activations, so that accumulators of 16 bits cannot overflow."""

from __future__ import annotations

from qtrack.environment import has_vnni
from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def reduce_range(recipe: Recipe, evidence: Evidence, *, on: bool | None = None) -> Recipe:
    """Give up a bit of each activation, or take it back.

    None follows PyTorch's guide: on for fbgemm and x86 where the processor has no VNNI, else off.
    """
    if on is None:
        on = recipe.engine in ("fbgemm", "x86") and not has_vnni()
    return recipe.with_activations(reduce_range=on)
