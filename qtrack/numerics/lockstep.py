"""Runs the reference and the quantized network side by side and hands out the places where they meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from torch.fx import GraphModule

from qtrack.numerics.graph import Inputs, Step, walk
from qtrack.numerics.sites import Pair, Site


class Meeting(NamedTuple):
    """One site on one batch."""

    site: Site
    start: Step
    """The reference where the layer's inputs enter."""
    end: Step
    """The reference where its output leaves."""
    actual: Step


def meetings(pair: Pair, inputs: Inputs) -> Iterator[Meeting]:
    """Every site in execution order, and last the networks' outputs; tensors are dropped after their use."""
    sites = (*pair.sites, pair.output)
    reference = _Reader(
        pair.reference, pair, inputs, Counter(name for s in sites for name in {s.start, s.end})
    )
    actual = _Reader(pair.actual, pair, inputs, Counter(s.actual for s in sites))
    for site in sites:
        start = reference.at(site.start)
        end = start if site.end == site.start else reference.at(site.end)
        yield Meeting(site, start, end, actual.at(site.actual))


class _Reader:
    """Takes steps from a walk in any order; a step waits until it was asked for as often as ``uses`` says."""

    def __init__(self, graph: GraphModule, pair: Pair, inputs: Inputs, uses: Counter[str]) -> None:
        self.steps = walk(graph, inputs, uses, pair.transparent)
        self.uses = uses
        self.waiting: dict[str, Step] = {}

    def at(self, node: str) -> Step:
        while node not in self.waiting:
            step = next(self.steps)
            self.waiting[step.node] = step
        self.uses[node] -= 1
        return self.waiting[node] if self.uses[node] else self.waiting.pop(node)
