"""Post-training static quantization."""

from __future__ import annotations

from typing import Literal

from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence


def ptq(
    recipe: Recipe,
    evidence: Evidence,
    *,
    observer: Literal["min_max", "moving_average", "histogram", "percentile"] | None = None,
    samples: int | None = None,
) -> Recipe:
    """Quantize weights and activations after calibration; keeps a static scheme that is there already."""
    if recipe.default.mode != "static" or recipe.training:
        recipe = recipe.with_mode("static")
    if observer:
        recipe = recipe.with_activations(observer=observer)
    if samples:
        recipe = recipe.having(calibration=recipe.calibration.having(samples=samples))
    return recipe
