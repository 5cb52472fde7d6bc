"""Mixed precision: leave in float the layers that int8 costs most, and no more than needed.

1. *Order*, on calibration samples: how much each layer is needed in float, by switching layers of one
   converted model (`qtrack.sensitivity`); where the backend gives no graph, or the recipe trains, by the own
   share of the error in the starting point's layer table.
2. *Bisect*: how many of them it takes, each evaluation a converted model on the whole validation split.
3. *Give back*: smaller sets, the least harmful on calibration samples first.

A candidate that loses too much on the validation samples that suffered most so far is rejected on these
alone, without being converted. Samples and evaluations are counted apart.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import Annotated, Literal

from pydantic import Field

from qtrack.errors import RecipeError
from qtrack.outcome import LayerRow
from qtrack.recipe import Float, Recipe
from qtrack.search.fewest import Cheapest, Set, most_evaluations, stricter
from qtrack.search.rejection import may_meet
from qtrack.stages.evidence import Evidence, Judged, Mixtures, ProbeFailed
from qtrack.statistics import paired_drop, target_met

log = logging.getLogger("qtrack")

FLOAT_BYTES = 4
STORED_BYTES = {"int8": 1, "int8_dynamic": 1, "int8_weight": 1, "float16_weight": 2}
LEAST_MS = 1e-4
"""What a layer that runs no slower in float is taken to add, so that fewer are left there."""
FLOAT = "float"


def fallback(
    recipe: Recipe,
    evidence: Evidence,
    *,
    max_layers: Annotated[int, Field(ge=1)] | None = None,
    cost: Literal["layers", "latency", "size"] = "layers",
) -> Recipe:
    """Leave in float the fewest layers with which the target surely holds, or those that add least.

    ``cost`` says what they are to add least to: their number, the latency as ``evidence.rungs`` prices it, or
    the bytes of the model.

    At most ``ceil(log2(N)) + 3`` recipes are evaluated, N layers with weights. Where none of them meets the
    target the answer is the one with the best metric. Raises RecipeError where no layer can be put back.
    """
    start = evidence.starting_point()
    rows = [row for row in start.outcome.layers if row.params and row.dtype != "float32"]
    if not rows:
        raise RecipeError(
            "fallback: no layer with weights runs quantized, so there is none to put back to float"
        )
    if start.meets_target:
        log.info("fallback: the target is met with all layers quantized")
        return recipe
    return _Search(recipe, evidence, rows, cost, max_layers).run()


class _Search:
    """One search, and what it has tried."""

    def __init__(
        self,
        recipe: Recipe,
        evidence: Evidence,
        rows: Sequence[LayerRow],
        cost: str,
        max_layers: int | None,
    ) -> None:
        self.recipe = recipe
        self.evidence = evidence
        self.start = evidence.starting_point()
        self.floating = evidence.floating().outcome.validation.scores
        costs = _costs(rows, cost, evidence)
        self.names = list(costs)
        own = [row.layer.partition("#")[0] for row in self.start.outcome.by_own_share()]
        self.own = [name for name in dict.fromkeys(own) if name in costs]
        self.limit = min(max_layers or len(self.names), len(self.names))
        self.mixtures: Mixtures | None = evidence.mixtures()
        self.tried: dict[Set, Judged] = {frozenset(): self.start}
        self.evaluations = 0
        self.allowed = most_evaluations(self.limit)
        self.cheapest = Cheapest(
            _costs(rows, cost, evidence), self._meets, lambda: self.evaluations >= self.allowed
        )

    def run(self) -> Recipe:
        self.evidence.plan(self.allowed)
        if self._remembered():
            self.evidence.spared(math.ceil(math.log2(self.limit + 1)) - 1)
        else:
            self.cheapest.bisect(self.order[: self.limit])
        self.cheapest.give_back(self._smaller)
        if self.cheapest.found is None:
            log.warning("fallback: no set of layers that was tried surely meets the target")
        return self._recipe(self._best())

    @cached_property
    def order(self) -> Sequence[str]:
        """Layers, those first that are needed most in float for what they cost."""
        if self.mixtures is not None:
            return self.mixtures.order(self.cheapest.costs)
        costs = self.cheapest.costs
        worst: dict[str, float] = {}
        for row in self.start.outcome.by_own_share():
            worst.setdefault(row.layer.partition("#")[0], 10 ** (-(row.own_sqnr_db or 0.0) / 10))
        return sorted(self.own, key=lambda layer: -worst[layer] / max(costs[layer], 1e-12))

    def _remembered(self) -> bool:
        """Does what an earlier run ended with meet the target here as well?"""
        sets = [self._float_layers(recipe) for recipe in self.evidence.winners()]
        for layers in dict.fromkeys(sets):
            if 0 < len(layers) <= self.limit and self.cheapest.take(layers):
                return True
            if layers:
                break  # one that fails is reason enough to search
        return False

    def _float_layers(self, recipe: Recipe) -> Set:
        named = {o.layer for o in recipe.overrides if o.layer and isinstance(o.scheme, Float)}
        return frozenset(named.intersection(self.names))

    def _smaller(self, layers: Set) -> Sequence[Set]:
        """Cheaper sets, the most promising first: one layer less, or as many of the first of a ranking."""
        found = [layers - {layer} for layer in reversed(self.order) if layer in layers]
        found += [one for ranking in (self.order, self.own) for one in self._prefix(ranking, layers)]
        found = [one for one in dict.fromkeys(found) if one and one not in self.tried]
        return sorted(found, key=self.mixtures.harm) if self.mixtures is not None else found

    def _prefix(self, ranking: Sequence[str], layers: Set) -> Sequence[Set]:
        """The longest beginning of a ranking that is cheaper than these layers, if there is one."""
        cheaper = (frozenset(ranking[:count]) for count in range(len(ranking), 0, -1))
        bound = self.cheapest.cost(layers)
        return list(islice((one for one in cheaper if self.cheapest.cost(one) < bound), 1))

    def _meets(self, layers: Set, strictly: bool) -> bool:
        target = self.evidence.target
        confidence = stricter(target.confidence) if strictly else target.confidence
        if layers not in self.tried and not self._may_meet(layers, confidence):
            return False
        if layers not in self.tried:
            self.evaluations += 1
            try:
                self.tried[layers] = self.evidence.probe(self._recipe(layers))
            except ProbeFailed:
                return False
        met = self._holds(self.tried[layers], confidence)
        self.evidence.propose(self._recipe(layers if met else self._best()))
        return met

    def _holds(self, judged: Judged, confidence: float) -> bool:
        drop = paired_drop(self.floating, judged.outcome.validation.scores, confidence)
        return target_met(drop, self.evidence.target.max_drop) is True

    def _may_meet(self, layers: Set, confidence: float) -> bool:
        mixtures = self.mixtures
        if mixtures is None:
            return True
        tried = [judged.outcome.validation.scores for judged in self.tried.values()]
        max_drop = self.evidence.target.max_drop
        return may_meet(lambda at: mixtures.scores(layers, at), self.floating, tried, max_drop, confidence)

    def _best(self) -> Set:
        """The cheapest that meets the target; else that with the best metric."""
        if self.cheapest.found is not None:
            return self.cheapest.found
        return max(self.tried, key=lambda layers: _number(self.tried[layers].outcome.value))

    def _recipe(self, layers: Set) -> Recipe:
        return self.recipe.keeping_float(*(name for name in self.names if name in layers))


def _costs(rows: Sequence[LayerRow], cost: str, evidence: Evidence) -> dict[str, float]:
    """What each layer adds when it goes back to float; a layer that is called twice counts once."""
    by_name = {row.layer.partition("#")[0]: row for row in rows}
    if cost == "latency":
        table = evidence.rungs()
        whole = table.predicted_ms({})
        return {
            name: max(table.predicted_ms({name: FLOAT}) - whole, LEAST_MS)
            for name in by_name
            if name in table.by_name
        }
    if cost == "size":
        return {name: row.params * (FLOAT_BYTES - STORED_BYTES[row.dtype]) for name, row in by_name.items()}
    return dict.fromkeys(by_name, 1.0)


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else value
