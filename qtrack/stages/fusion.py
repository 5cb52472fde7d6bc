"""BatchNorm folded wherever it can be."""

from __future__ import annotations

from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def fusion(recipe: Recipe, evidence: Evidence) -> Recipe:
    """Fold BatchNorm into the layer before it, also where the library does not see that it could."""
    return recipe.with_transform("fold_batch_norm")
