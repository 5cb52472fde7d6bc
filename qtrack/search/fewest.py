"""The cheapest set of layers that meets a target, in a number of evaluations known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

Set = frozenset[str]
LOOKS = 4
"""Sets that are looked at to give back: as many chances more to be lucky on the samples that decide."""
EXTRA = 3
"""Evaluations beyond the logarithm, for giving back; with the execution of what was found they are 4."""


def most_evaluations(layers: int) -> int:
    """Of a search among so many layers: ``ceil(log2(N)) + EXTRA``."""
    return math.ceil(math.log2(max(layers, 1))) + EXTRA


class Cheapest:
    """Narrows down to a cheap set.

    ``meets`` evaluates one, by ``stricter`` where its second argument says so; ``spent``: no more may be.
    """

    def __init__(
        self, costs: Mapping[str, float], meets: Callable[[Set, bool], bool], spent: Callable[[], bool]
    ) -> None:
        self.costs = costs
        self.meets = meets
        self.spent = spent
        self.found: Set | None = None
        """The cheapest that meets the target so far."""

    def cost(self, layers: Iterable[str]) -> float:
        """Of these layers together."""
        return sum(self.costs[layer] for layer in layers)

    def take(self, layers: Iterable[str], *, strictly: bool = False) -> bool:
        """Evaluate a set, and keep it where it meets the target and is cheaper than what was found."""
        candidate = frozenset(layers)
        met = self.meets(candidate, strictly)
        if met and self.is_cheaper(candidate):
            self.found = candidate
        return met

    def bisect(self, order: Sequence[str]) -> None:
        """How many first layers of a ranking it takes; where the metric goes up and down, one such number."""
        low, high = 1, len(order)
        while low <= high and not self.spent():
            count = (low + high) // 2
            low, high = (low, count - 1) if self.take(order[:count]) else (count + 1, high)

    def give_back(self, candidates: Callable[[Set], Sequence[Set]]) -> None:
        """Go on to cheaper sets, most promising first, as long as one meets the target; LOOKS in all."""
        looks, improved = 0, True
        while improved and self.found is not None:
            improved = False
            for candidate in filter(self.is_cheaper, candidates(self.found)):
                if looks == LOOKS or self.spent():
                    return
                looks += 1
                improved = self.take(candidate, strictly=True)
                if improved:
                    break

    def is_cheaper(self, layers: Set) -> bool:
        """Than what was found?"""
        return self.found is None or self.cost(layers) < self.cost(self.found)


def stricter(confidence: float) -> float:
    """What each of LOOKS further looks must meet, so that all together add half of the error allowed.

    A two-sided interval at the confidence c has (1 - c) / 2 on the side that matters; looks along a ranking
    that was fixed before have about that together, because what one of them loses the others lose as well
    (shown in benchmarks/confidence.py). Each look at other sets gets that over LOOKS (Bonferroni).
    """
    return 1 - (1 - confidence) / LOOKS
