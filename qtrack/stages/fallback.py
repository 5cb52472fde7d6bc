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
from qtrack.recipe import Float, Override, Recipe
from qtrack.search.fewest import ALONG, LOOKS, Cheapest, Set, most_evaluations
from qtrack.search.rejection import may_meet
from qtrack.stages.evidence import Evidence, Judged, Mixtures, ProbeFailed
from qtrack.statistics import stricter

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
        self.mixtures: Mixtures | None = evidence.mixtures()
        single = _costs(rows, cost, evidence)
        self.layers = list(single)
        self.together = _together(self.mixtures.coupled() if self.mixtures else (), self.layers)
        self.leader = {name: first for first, group in self.together.items() for name in group}
        costs = {first: sum(single.get(one, 0.0) for one in group) for first, group in self.together.items()}
        self.limit = min(max_layers or len(costs), len(costs))
        self.tried: dict[Set, Judged] = {frozenset(): self.start}
        self.evaluations = 0
        self.allowed = most_evaluations(self.limit)
        self.cheapest = Cheapest(costs, self._meets, lambda: self.evaluations >= self.allowed, self._expect)

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
            return self.mixtures.order(self.cheapest.costs, self.together)
        costs, worst = self.cheapest.costs, dict[str, float]()
        for row in self.start.outcome.by_own_share():
            worst.setdefault(row.layer.partition("#")[0], 10 ** (-(row.own_sqnr_db or 0.0) / 10))
        return sorted(self.own, key=lambda layer: -worst.get(layer, 0.0) / max(costs[layer], 1e-12))

    @cached_property
    def own(self) -> list[str]:
        """Layers by their own share of the error in the layer table, the worst first."""
        rows = self.start.outcome.by_own_share()
        leaders = (self.leader.get(row.layer.partition("#")[0]) for row in rows)
        return [name for name in dict.fromkeys(leaders) if name]

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
        return frozenset(self.leader[name] for name in named.intersection(self.leader))

    def _smaller(self, layers: Set) -> Sequence[Set]:
        """Cheaper sets, the most promising first: one layer less, or as many of the first of a ranking."""
        found = [layers - {layer} for layer in reversed(self.order) if layer in layers]
        found += [one for ranking in (self.order, self.own) for one in self._prefix(ranking, layers)]
        found = [one for one in dict.fromkeys(found) if one and one not in self.tried]
        mixtures = self.mixtures
        return sorted(found, key=lambda one: mixtures.harm(self._off(one))) if mixtures else found

    def _prefix(self, ranking: Sequence[str], layers: Set) -> Sequence[Set]:
        """The longest beginning of a ranking that is cheaper than these layers, if there is one."""
        cheaper = (frozenset(ranking[:count]) for count in range(len(ranking), 0, -1))
        bound = self.cheapest.cost(layers)
        return list(islice((one for one in cheaper if self.cheapest.cost(one) < bound), 1))

    def _expect(self, sets: Sequence[Set]) -> None:
        self.evidence.expect([self._recipe(layers) for layers in sets if layers not in self.tried])

    def _meets(self, layers: Set, strictly: bool) -> bool:
        looks = LOOKS if strictly else ALONG
        if layers not in self.tried and not self._may_meet(layers, looks):
            return False
        if layers not in self.tried:
            self.evaluations += 1
            try:
                self.tried[layers] = self.evidence.probe(self._recipe(layers))
            except ProbeFailed:
                return False
        met = self.evidence.holds(self.tried[layers], looks)
        self.evidence.propose(self._recipe(layers if met else self._best()))
        return met

    def _may_meet(self, layers: Set, looks: int) -> bool:
        mixtures = self.mixtures
        if mixtures is None:
            return True
        tried = [judged.outcome.validation.scores for judged in self.tried.values()]
        target, off = self.evidence.target, self._off(layers)
        confidence = stricter(target.confidence, looks)
        floating = self.evidence.floating().outcome.validation.scores
        return may_meet(lambda at: mixtures.scores(off, at), floating, tried, target.max_drop, confidence)

    def _best(self) -> Set:
        """The cheapest that meets the target; else that with the best metric."""
        if self.cheapest.found is not None:
            return self.cheapest.found
        return max(self.tried, key=lambda layers: _number(self.tried[layers].outcome.value))

    def _recipe(self, layers: Set) -> Recipe:
        off = self._off(layers)
        kept = self.recipe.keeping_float(*(name for name in self.layers if name in off))
        calls = [Override(call=name, scheme=Float()) for name in sorted(off.difference(self.layers))]
        return kept.having(overrides=(*kept.overrides, *calls))

    def _off(self, layers: Set) -> Set:
        """All that goes to float with these."""
        return frozenset[str]().union(*(self.together[layer] for layer in layers))


def _together(coupled: Sequence[Set], layers: Sequence[str]) -> dict[str, Set]:
    """What is switched with each layer that stands for others: all that share its scale, itself among it."""
    found: dict[str, Set] = {}
    for layer in layers:
        group = next((one for one in coupled if layer in one), frozenset({layer}))
        if group not in found.values():
            found[layer] = group
    return found


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
        spared = {name: FLOAT_BYTES - STORED_BYTES.get(row.dtype, 1) for name, row in by_name.items()}
        return {name: float(row.params * spared[name]) for name, row in by_name.items()}
    return dict.fromkeys(by_name, 1.0)


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else value
