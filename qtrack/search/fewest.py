"""The cheapest set of layers that meets a target, in a number of evaluations known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

Set = frozenset[str]
EXTRA = 3
"""Evaluations beyond the logarithm, for giving back; with the execution of what was found they are 4."""


def most_evaluations(layers: int) -> int:
    """Of a search among so many layers: ``ceil(log2(N)) + EXTRA``."""
    return math.ceil(math.log2(max(layers, 1))) + EXTRA


class Cheapest:
    """Narrows down to a cheap set; ``meets`` evaluates one, ``spent`` says that no more may be evaluated."""

    def __init__(
        self, costs: Mapping[str, float], meets: Callable[[Set], bool], spent: Callable[[], bool]
    ) -> None:
        self.costs = costs
        self.meets = meets
        self.spent = spent
        self.found: Set | None = None
        """The cheapest that meets the target so far."""

    def cost(self, layers: Iterable[str]) -> float:
        """Of these layers together."""
        return sum(self.costs[layer] for layer in layers)

    def take(self, layers: Iterable[str]) -> bool:
        """Evaluate a set, and keep it where it meets the target and is cheaper than what was found."""
        candidate = frozenset(layers)
        met = self.meets(candidate)
        if met and (self.found is None or self.cost(candidate) < self.cost(self.found)):
            self.found = candidate
        return met

    def bisect(self, order: Sequence[str]) -> None:
        """How many first layers of a ranking it takes; where the metric goes up and down, one such number."""
        low, high = 1, len(order)
        while low <= high and not self.spent():
            count = (low + high) // 2
            low, high = (low, count - 1) if self.take(order[:count]) else (count + 1, high)

    def give_back(self, candidates: Callable[[Set], Sequence[Set]]) -> None:
        """Go on to cheaper sets, most promising first, as long as one meets the target."""
        improved = True
        while improved and self.found is not None:
            improved = False
            for candidate in candidates(self.found):
                if self.spent():
                    return
                if self.cost(candidate) < self.cost(self.found) and self.take(candidate):
                    improved = True
                    break
