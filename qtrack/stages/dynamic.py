"""Dynamic quantization."""

from __future__ import annotations

from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def dynamic(recipe: Recipe, evidence: Evidence) -> Recipe:
    """Integer weights, activation ranges found as each batch runs, for linear and recurrent layers."""
    return recipe.with_mode("dynamic")
