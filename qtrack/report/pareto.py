"""Which strategies nothing beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qtrack.ledger import Strategy

MARK = "*"


def pareto_optimal(strategies: Sequence[Strategy]) -> frozenset[int]:
    """Positions of those that no other one beats in metric, size and latency at once.

    One beats another if it is as good in all three and better in one. Metric and size count as they are; the
    metric's interval does not, as it is against the float model. Latencies count as equal within the larger
    of the two interquartile ranges, and where one of them is not known. Equal strategies do not beat each
    other. One without metric or size takes no part; one of another task is never compared.
    """
    known = [
        i for i, s in enumerate(strategies) if s.status == "FINISHED" and s.value is not None and s.size_bytes
    ]
    return frozenset(i for i in known if not any(_beats(strategies[j], strategies[i]) for j in known))


def _beats(one: Strategy, other: Strategy) -> bool:
    if (one.experiment, one.metric) != (other.experiment, other.metric):
        return False
    gains = (
        (one.value or 0.0) - (other.value or 0.0),
        (other.size_bytes or 0) - (one.size_bytes or 0),
        _saved_ms(one, other),
    )
    return min(gains) >= 0 and max(gains) > 0


def _saved_ms(one: Strategy, other: Strategy) -> float:
    """How much quicker the one is; 0 where that could be chance."""
    if one.latency_ms is None or other.latency_ms is None:
        return 0.0
    saved = other.latency_ms - one.latency_ms
    return saved if abs(saved) > max(one.latency_iqr_ms or 0.0, other.latency_iqr_ms or 0.0) else 0.0
