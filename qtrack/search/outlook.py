"""An early word, where what a search can change will not do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtrack.recipe import Recipe
from qtrack.statistics import Scores, paired_drop, target_met

LAST = "QAT, or a larger type for some layers (fallback, ladder)"


def outlook(
    recipe: Recipe, legs: Mapping[Any, Scores], floating: Scores, max_drop: float, confidence: float
) -> Iterator[str]:
    """A sentence for each side that surely misses the target alone, with the other side in float."""
    for side, scores in legs.items():
        drop = paired_drop(floating[: len(scores)], scores, confidence)
        if target_met(drop, max_drop) is False:
            lost = f"{drop.value:.4f} [{drop.low:.4f}, {drop.high:.4f}]"
            yield (
                f"{side} alone on integers lose {lost} on {drop.samples} validation samples, of {max_drop:g} "
                f"that the target allows: {_vain(side)} helps. "
                f"What remains: {', '.join(_remedies(recipe, side))}"
            )


def _vain(side: str) -> str:
    return "no other range for activations" if side == "weights" else "nothing that changes weights alone"


def _remedies(recipe: Recipe, side: str) -> Iterator[str]:
    weight = getattr(recipe.default, "weight", None)
    if side == "weights" and weight is not None and weight.granularity == "per_tensor":
        yield "scales per channel"
    if side == "activations":
        yield "other observers"
    yield "equalize"
    yield LAST
