"""Which of the trials is the answer, and which others are as good in their way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qtrack.search.study import Ended

Point = tuple[float, ...]


def values(ended: Ended, costs: Sequence[str]) -> list[float]:
    """Of the objectives: the metric, to be maximised, and the costs."""
    return [ended.facts[name] for name in ("metric", *costs)]


def answer(trials: Sequence[Ended], costs: Sequence[str]) -> Ended | None:
    """The cheapest that meets the target; where none does, or there are no costs, the one of the best metric.

    Of equals the first; None where no trial is complete.
    """

    def rank(ended: Ended) -> tuple[bool, Point]:
        metric, *paid = _point(ended, costs)
        met = ended.facts["meets_target"] is True
        return met, (*paid, metric) if met else (metric,)

    return max((one for one in trials if one.how == "complete"), key=rank, default=None)


def front(trials: Sequence[Ended], costs: Sequence[str]) -> list[Ended]:
    """Those than which none is as good in all objectives and better in one, the best metric first.

    Of equals the first alone.
    """
    found: dict[Point, Ended] = {}
    for one in trials:
        if one.how == "complete":
            found.setdefault(_point(one, costs), one)
    best = [point for point in found if not any(_dominates(other, point) for other in found)]
    return [found[point] for point in sorted(best, reverse=True)]


def _point(ended: Ended, costs: Sequence[str]) -> Point:
    """The larger the better."""
    metric, *paid = values(ended, costs)
    return metric, *(-cost for cost in paid)


def _dominates(one: Point, other: Point) -> bool:
    return one != other and all(mine >= its for mine, its in zip(one, other, strict=True))
