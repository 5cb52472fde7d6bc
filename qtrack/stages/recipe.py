"""A recipe as it stands in the pipeline file."""

from __future__ import annotations

from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def recipe(recipe: Recipe, evidence: Evidence) -> Recipe:
    """Execute the recipe that the stage starts from, unchanged."""
    return recipe
