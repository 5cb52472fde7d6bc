"""The cheapest set of layers that meets a target, in a number of evaluations known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

Set = frozenset[str]
ALONG, LOOKS = 2, 4
"""Chances to be lucky on the samples that decide, which acceptance accounts for.

Looks along a ranking, fixed before, count as two: what one of them loses most others lose as well. Each of
the sets that are looked at to give back counts for itself (shown in benchmarks/confidence.py).
"""
EXTRA = 3
"""Evaluations beyond the logarithm, for giving back; with the execution of what was found they are 4."""


def most_evaluations(layers: int) -> int:
    """Of a search among so many layers: ``ceil(log2(N)) + EXTRA``."""
    return math.ceil(math.log2(max(layers, 1))) + EXTRA


class Cheapest:
    """Narrows down to a cheap set.

    ``meets`` evaluates one, as one of LOOKS where its second argument says so; ``spent``: no more may be.
    ``expect`` is told before which ones may come, the likeliest first.
    """

    def __init__(
        self,
        costs: Mapping[str, float],
        meets: Callable[[Set, bool], bool],
        spent: Callable[[], bool],
        expect: Callable[[Sequence[Set]], None] = lambda sets: None,
    ) -> None:
        self.costs = costs
        self.meets = meets
        self.spent = spent
        self.expect = expect
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
            self.expect([frozenset(order[:one]) for one in likely(low, high)])
            low, high = (low, count - 1) if self.take(order[:count]) else (count + 1, high)

    def give_back(self, candidates: Callable[[Set], Sequence[Set]]) -> None:
        """Go on to cheaper sets, most promising first, as long as one meets the target; LOOKS in all."""
        looks, improved = 0, True
        while improved and self.found is not None:
            improved = False
            cheaper = list(filter(self.is_cheaper, candidates(self.found)))
            for place, candidate in enumerate(cheaper):
                self.expect(cheaper[place : place + LOOKS - looks])
                if looks == LOOKS or self.spent():
                    return
                looks += 1
                improved = self.take(candidate, strictly=True)
                if improved:
                    break

    def is_cheaper(self, layers: Set) -> bool:
        """Than what was found?"""
        return self.found is None or self.cost(layers) < self.cost(self.found)


def likely(low: int, high: int) -> list[int]:
    """What bisection between these looks at now, and what it looks at next, whichever way this goes."""
    middle = (low + high) // 2
    halves = ((low, middle - 1), (middle + 1, high))
    return [middle, *((first + last) // 2 for first, last in halves if first <= last)]
