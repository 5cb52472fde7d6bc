"""Per-channel weights."""

from __future__ import annotations

from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def per_channel(recipe: Recipe, evidence: Evidence) -> Recipe:
    """Give each output channel of the weights its own scale."""
    return recipe.with_weights(granularity="per_channel")
