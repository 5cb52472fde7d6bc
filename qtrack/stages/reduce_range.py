"""One bit less for activations, so that accumulators of 16 bits cannot overflow."""

from __future__ import annotations

from qtrack.environment import has_vnni
from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def reduce_range(recipe: Recipe, evidence: Evidence, *, on: bool | None = None) -> Recipe:
    """Give up a bit of each activation, or take it back.

    None follows PyTorch's guide: on for x86 where the processor has no VNNI, and for fbgemm. That one's
    kernel for depthwise convolutions adds up in 16 bits on any processor: measured on one with VNNI, where
    nine products of the largest numbers came to 5 instead of 9.
    """
    if on is None:
        on = recipe.engine == "fbgemm" or (recipe.engine == "x86" and not has_vnni())
    return recipe.with_activations(reduce_range=on)
