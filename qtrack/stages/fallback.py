"""Mixed precision: leave in float the layers that cost most accuracy."""

from __future__ import annotations

from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence, Judged


def fallback(recipe: Recipe, evidence: Evidence, *, max_layers: int | None = None) -> Recipe:
    """Leave in float the fewest layers, worst own share of the error first, with which the target is met.

    How many is found by binary search, in at most ``ceil(log2(N + 1))`` evaluations. Accuracy need not grow
    with every layer, so the answer is the fewest *among those tried*; where none meets the target, it is the
    one with the best metric.
    """
    ranking = [row.layer for row in evidence.starting_point().outcome.by_own_share() if row.params]
    tried: dict[int, Judged] = {0: evidence.starting_point()}
    low, high = 1, min(len(ranking), max_layers if max_layers is not None else len(ranking))
    while low <= high and not tried[0].meets_target:
        count = (low + high) // 2
        tried[count] = evidence.probe(recipe.keeping_float(*ranking[:count]))
        low, high = (low, count - 1) if tried[count].meets_target else (count + 1, high)
    return recipe.keeping_float(*ranking[: _best(tried)])


def _best(tried: dict[int, Judged]) -> int:
    met = [count for count, judged in tried.items() if judged.meets_target]
    return min(met) if met else max(tried, key=lambda count: tried[count].outcome.value)
