"""Mixed precision by prices: each layer on the rung that is worth what it costs on this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from qtrack.errors import RecipeError
from qtrack.recipe import Recipe, Static
from qtrack.search.assignment import Cost, front, least_noise, spent
from qtrack.search.fewest import ALONG, likely
from qtrack.search.prices import Choice, PriceTable
from qtrack.stages.evidence import Evidence, Judged, ProbeFailed

log = logging.getLogger("qtrack")

FINEST = 5
"""The front has at most so many choices that this many evaluations tell which of them it is."""
Milliseconds = Annotated[float, Field(gt=0)]
Kilobytes = Annotated[float, Field(gt=0)]


def ladder(
    recipe: Recipe,
    evidence: Evidence,
    *,
    cost: Cost = "latency",
    max_latency_ms: Milliseconds | None = None,
    max_size_kb: Kilobytes | None = None,
    max_evaluations: Annotated[int, Field(ge=1)] = 8,
) -> Recipe:
    """Put each layer on a rung of its own, by what the rungs cost here and how much noise they make.

    With a budget, that of one batch in milliseconds or of the parameters in kB, it is the choice with the
    least noise within it. Without one it is the cheapest with which the target is met, found by binary search
    among the choices that are each the cheapest of their noise; where none meets it, the best of those tried.
    bfloat16 is no mode of recipes, so that it is no rung.
    """
    if max_latency_ms is not None and max_size_kb is not None:
        raise RecipeError("ladder: max_latency_ms and max_size_kb are two budgets: name one")
    start = _start(recipe, evidence)
    table, weights = evidence.rungs(), _gains(evidence)
    if max_latency_ms is not None:
        return table.recipe(recipe, least_noise(table, "latency", max_latency_ms, weights))
    if max_size_kb is not None:
        return table.recipe(recipe, least_noise(table, "size", 1000 * max_size_kb, weights))
    points = 2 ** min(max_evaluations, FINEST) - 1
    return _cheapest(recipe, evidence, start, _candidates(table, cost, points, start, weights), table)


def _gains(evidence: Evidence) -> Mapping[str, float] | None:
    """A layer's noise counts as it comes out of the network; where that cannot be told, all alike."""
    mixtures = evidence.mixtures()
    return mixtures.gains() if mixtures is not None else None


def _start(recipe: Recipe, evidence: Evidence) -> Judged:
    if not isinstance(recipe.default, Static):
        raise RecipeError(
            f"ladder: {recipe.default.mode} has no rungs to choose from: start from a stage that quantizes "
            "statically, such as ptq"
        )
    return evidence.starting_point()


def _candidates(
    table: PriceTable, cost: Cost, points: int, start: Judged, weights: Mapping[str, float] | None
) -> list[Choice]:
    """From the cheapest to the most precise; none that costs as much as a start that will do."""
    found: list[Choice] = [*front(table, cost, points, weights)]
    if start.meets_target:
        return [choice for choice in found if spent(table, cost, choice) < spent(table, cost, {})]
    return found


def _cheapest(
    recipe: Recipe, evidence: Evidence, start: Judged, candidates: Sequence[Choice], table: PriceTable
) -> Recipe:
    """The first that meets the target, taking it that those after it do so too."""
    low, high = 0, len(candidates) - 1
    evidence.plan(len(candidates).bit_length())
    best = start
    evidence.propose(recipe)
    while low <= high:
        middle = (low + high) // 2
        evidence.expect([table.recipe(recipe, candidates[one]) for one in likely(low, high)])
        found = _tried(evidence, table.recipe(recipe, candidates[middle]))
        met = found is not None and evidence.holds(found, ALONG)
        if found is not None and (met or _is_better(found, best)):
            best = found
            evidence.propose(best.outcome.recipe)
        low, high = (low, middle - 1) if met else (middle + 1, high)
    return best.outcome.recipe


def _tried(evidence: Evidence, recipe: Recipe) -> Judged | None:
    try:
        return evidence.probe(recipe)
    except ProbeFailed:  # recorded; a more precise choice may do
        return None


def _is_better(found: Judged, best: Judged) -> bool:
    """Candidates that meet the target come cheaper and cheaper; of those that do not, the metric decides."""
    if found.meets_target or best.meets_target:
        return bool(found.meets_target)
    return found.outcome.value > best.outcome.value
