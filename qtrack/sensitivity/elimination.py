"""The order in which layers can go back to integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from qtrack.monitor import Advance

Off = frozenset[str]


def eliminated(
    costs: Mapping[str, float],
    harm: Callable[[Off], float],
    settle: Callable[[Off], None],
    advance: Advance,
) -> tuple[str, ...]:
    """Layers by how much they are needed in float for what each costs there, most first.

    Backward elimination: of the layers in float, the one goes next whose going does the least harm for what
    it saves. What a layer did when it was last asked is taken for the least that it will do, because harm
    mostly grows with what is quantized already; so only those that lead are asked again (as in Minoux 1978,
    whose guarantee holds where that is always so). ``settle`` is told each mixture before the next are made.
    """
    off, order = frozenset(costs), list[str]()
    least = dict.fromkeys(costs, -math.inf)
    settle(off)
    level = harm(off)
    while off:
        asked = set[str]()
        while (next_one := min(sorted(off), key=least.__getitem__)) not in asked:
            least[next_one] = _worth(harm(off - {next_one}) - level, costs[next_one])
            asked.add(next_one)
        off -= {next_one}
        order.append(next_one)
        settle(off)
        level = harm(off)
        advance(1)
    return tuple(reversed(order))


def _worth(rise: float, cost: float) -> float:
    """Harm for what it saves; where there is none, the more is saved the better."""
    if math.isnan(rise):
        return math.inf
    cost = max(cost, 1e-12)
    return rise / cost if rise > 0 else rise * cost
