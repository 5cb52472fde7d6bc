"""Layers that are named, left in float."""

from __future__ import annotations

from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def keep_float(recipe: Recipe, evidence: Evidence, *, layers: list[str]) -> Recipe:
    """Leave these layers in float, by their names in the layer table."""
    return recipe.keeping_float(*layers)
