"""Cross-layer equalization."""

from __future__ import annotations

from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def equalize(recipe: Recipe, evidence: Evidence) -> Recipe:
    """Give the weights on both sides of each channel between two layers the same range first."""
    return recipe.with_transform("equalize")
