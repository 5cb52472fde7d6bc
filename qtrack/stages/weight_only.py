"""Weight-only quantization."""

from __future__ import annotations

from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def weight_only(recipe: Recipe, evidence: Evidence) -> Recipe:
    """Store every weight as integers and compute in float32."""
    return recipe.with_mode("weight_only")
