"""Runs a reference and quantized networks side by side and hands out the places where they meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qtrack.numerics.sites import OUTPUTS, Pair, Site
from qtrack.numerics.steps import Inputs, Runner, Step


class Meeting(NamedTuple):
    """One site of one candidate on one batch."""

    candidate: int
    site: Site
    start: Step
    """The reference where the layer's inputs enter."""
    end: Step
    """The reference where its output leaves."""
    actual: Step


class Lockstep:
    """Pairs that share one reference, the first one's, which runs once for all of them."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.reference = pairs[0].reference
        self.candidates = [pair.actual for pair in pairs]
        self.visits = _in_execution_order(pairs)
        self.uses = Counter(node for _, site in self.visits for node in {site.start, site.end})
        self.candidate_uses = [Counter(s.actual for c, s in self.visits if c == i) for i in range(len(pairs))]

    def run(self, inputs: Inputs) -> Iterator[Meeting]:
        """Every site in execution order, and last the outputs; tensors are dropped after their use."""
        reference = _Reader(self.reference, inputs, self.uses)
        candidates = [
            _Reader(runner, inputs, uses)
            for runner, uses in zip(self.candidates, self.candidate_uses, strict=True)
        ]
        for candidate, site in self.visits:
            start = reference.at(site.start)
            end = start if site.end == site.start else reference.at(site.end)
            yield Meeting(candidate, site, start, end, candidates[candidate].at(site.actual))


def _in_execution_order(pairs: Sequence[Pair]) -> list[tuple[int, Site]]:
    """All candidates' sites, layer by layer."""
    visits = [(i, site) for i, pair in enumerate(pairs) for site in pair.sites]
    visits.sort(key=lambda visit: visit[1].index)
    return visits + [(i, OUTPUTS) for i in range(len(pairs))]


class _Reader:
    """Takes steps from a run in any order; a step waits until it was asked for as often as ``uses`` says."""

    def __init__(self, runner: Runner, inputs: Inputs, uses: Counter[str]) -> None:
        self.steps = runner.run(inputs, uses)
        self.left = Counter(uses)
        self.waiting: dict[str, Step] = {}

    def at(self, node: str) -> Step:
        while node not in self.waiting:
            step = next(self.steps)
            self.waiting[step.node] = step
        self.left[node] -= 1
        return self.waiting[node] if self.left[node] else self.waiting.pop(node)
