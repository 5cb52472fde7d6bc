"""A strategy's metric over time, and what went in otherwise where it moved.

A point is a finished stage; its line are those of the same name in the same pipeline, the oldest first. Each
is held against the point before it, by a paired interval where both were validated on the same samples in the
same order, else by that of two independent sets. Significant is a change whose 95% interval does not hold 0.

Files are read only of pairs whose metric moved by more than chance could explain at best, and of the latest
MOST_PAIRS of those: others are compared by their recorded values alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from qtrack.difference import Difference, difference
from qtrack.errors import QtrackError
from qtrack.ledger import Strategy
from qtrack.reproduction import Recorded
from qtrack.sources import NONE
from qtrack.statistics import Drop, Scores, is_chance, unpaired_drop

MOST_PAIRS = 100
Read = Callable[[str], Recorded]


class Cause(NamedTuple):
    """An ingredient that is not what it was."""

    kind: str
    """recipe, data, weights, code, or environment (versions, processor, threads)."""
    name: str
    was: str
    now: str


@dataclass(frozen=True)
class Change:
    """How far the metric moved from the point before, positive where it got better."""

    value: float
    low: float | None = None
    high: float | None = None
    """None: not tested, since it could be chance at best or since neither samples nor counts are known."""
    paired: bool = False
    unpaired: str = ""
    """Why it is not that of the same samples; empty where it is, or where it was not tested."""
    causes: tuple[Cause, ...] = ()

    @property
    def significant(self) -> bool:
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Point:
    """A finished stage; its change is None where it is the first, or has another metric than before."""

    strategy: Strategy
    change: Change | None = None


@dataclass(frozen=True)
class Line:
    """The points of one strategy, the oldest first."""

    pipeline: str | None
    stage: str
    points: tuple[Point, ...]


def history(strategies: Iterable[Strategy], read: Read) -> list[Line]:
    """Lines in the order in which they began; ``read`` gives what a run has recorded, or raises."""
    of_key: dict[tuple[str | None, str], list[Strategy]] = {}
    for strategy in strategies:
        if strategy.value is not None:
            of_key.setdefault((strategy.pipeline, strategy.stage), []).append(strategy)
    moved = [pair for found in of_key.values() for pair in pairwise(found) if _is_worth_reading(*pair)]
    latest = sorted(moved, key=lambda pair: pair[1].started, reverse=True)[:MOST_PAIRS]
    chosen, recorded = {after for _, after in latest}, cache(read)
    return [Line(*key, tuple(_points(found, chosen, recorded))) for key, found in of_key.items()]


def _points(strategies: Sequence[Strategy], chosen: set[Strategy], read: Read) -> Iterator[Point]:
    yield Point(strategies[0])
    for before, after in pairwise(strategies):
        if before.metric != after.metric:
            yield Point(after)
        elif not _is_worth_reading(before, after):
            yield Point(after, Change(_moved(before, after)))
        elif after in chosen:
            yield Point(after, _read_change(before, after, read))
        else:
            yield Point(after, _change_of_values(before, after, f"only the latest {MOST_PAIRS} are read"))


def _moved(before: Strategy, after: Strategy) -> float:
    return (after.value or 0.0) - (before.value or 0.0)


def _is_worth_reading(before: Strategy, after: Strategy) -> bool:
    """May the change be more than chance?"""
    change, samples = _moved(before, after), after.samples
    if before.metric != after.metric or math.isclose(change, 0.0, abs_tol=1e-12):
        return False
    counts = samples == before.samples and all(_hits(s) is not None for s in (before, after))
    return not (counts and samples and is_chance(change, samples))


def _hits(strategy: Strategy) -> Scores | None:
    """As many hits and misses as the value counts; None where it counts none."""
    value, samples = strategy.value or 0.0, strategy.samples or 0
    hits = value * samples
    if not samples or not 0 <= value <= 1 or not math.isclose(hits, round(hits), abs_tol=1e-6):
        return None
    return (np.arange(samples) < round(hits)).astype(float)


def _read_change(before: Strategy, after: Strategy, read: Read) -> Change:
    try:
        first, second = read(before.run_id), read(after.run_id)
    except QtrackError as error:
        return _change_of_values(before, after, str(error))
    found = difference(first, second, ())
    causes = tuple(_causes(found))
    if found.shift is not None:
        return Change(found.shift.change, found.shift.low, found.shift.high, paired=True, causes=causes)
    change = _unpaired(first.result.scores, second.result.scores, found.unpaired)
    return replace(change, causes=causes)


def _change_of_values(before: Strategy, after: Strategy, why: str) -> Change:
    first, second = _hits(before), _hits(after)
    if first is None or second is None:
        return Change(_moved(before, after), unpaired=why)
    return _unpaired(first, second, why)


def _unpaired(before: Scores, after: Scores, why: str) -> Change:
    drop: Drop = unpaired_drop(before, after)
    return Change(-drop.value, -drop.high, -drop.low, unpaired=why)


def _causes(found: Difference) -> Iterator[Cause]:
    for field, was, now in found.recipe:
        yield Cause("recipe", field, NONE if was is None else was, NONE if now is None else now)
    for kind, group in found.ingredients.items():
        yield from (Cause(kind, *drift) for drift in group.differ)
