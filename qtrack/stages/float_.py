"""The float model as it is: the baseline that every other stage is compared with."""

from __future__ import annotations

from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def float_(recipe: Recipe, evidence: Evidence) -> Recipe:
    """Quantize nothing."""
    return recipe.with_mode("float")
