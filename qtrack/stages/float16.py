"""Weights in float16."""

from __future__ import annotations

from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def float16(recipe: Recipe, evidence: Evidence) -> Recipe:
    """Store every weight in float16 and compute in float32."""
    return recipe.with_mode("float16")
