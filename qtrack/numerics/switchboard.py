"""A quantized network whose layers can be switched back to float one by one, without converting it again.

Each layer that is on runs its own integer kernel, fed with what comes to it in the mixture, quantized as its
input is in the quantized network; each that is off runs as in the fused float network. Calibration ranges do
not depend on which layers are quantized (observers see float values), so one conversion stands for every
mixture. From one mixture to another only what depends on a switched layer is computed again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map

from qtrack.numerics.compare import as_fed, plain
from qtrack.numerics.graph import Program, Values
from qtrack.numerics.sites import Pair, Site
from qtrack.numerics.steps import Inputs, Step


@dataclass(frozen=True, eq=False)
class Trace:
    """One batch through one mixture: the value of every node."""

    off: frozenset[str]
    values: Values
    computed: int
    """Nodes that were computed for it."""

    @property
    def bytes(self) -> int:
        """Of all values, those that share memory counted once."""
        held = {v.untyped_storage() for v in self.values.values() if isinstance(v, Tensor)}
        return sum(storage.nbytes() for storage in held)


class Switchboard:
    """Mixtures of the float network and the quantized one, on batches shaped like the example."""

    def __init__(self, pair: Pair, example: Inputs) -> None:
        """Raises TypeError where the networks are not at hand as graphs."""
        if not isinstance(pair.reference, Program) or not isinstance(pair.actual, Program):
            raise TypeError("only graphs can be switched layer by layer")
        self.program = pair.reference
        sites = [site for site in pair.sites if site.quantized]
        self.kernels = _kernels(pair.actual, example, sites)
        self.switches = _switches(sites)
        by_name = {node.name: node for node in self.program.nodes}
        self.starts = {by_name[site.start]: site for site in sites}
        self.spans = {site: _span(by_name[site.start], by_name[site.end]) for site in sites}
        self.order = {node: place for place, node in enumerate(self.program.nodes)}
        self.after = {name: self._descendants(group) for name, group in self.switches.items()}

    @property
    def layers(self) -> tuple[str, ...]:
        """What can be switched, in execution order: layers with weights, and calls of functions."""
        return tuple(self.switches)

    @property
    def nodes(self) -> int:
        """Of a whole run."""
        return len(self.program.nodes)

    def run(self, inputs: Inputs, off: Collection[str]) -> Trace:
        """All layers on their kernels but these."""
        return self._computed(frozenset(off), self.program.given(inputs), self.program.nodes)

    def switched(self, trace: Trace, off: Collection[str]) -> Trace:
        """The same batch with these layers off, computed from where the mixtures part."""
        changed = trace.off.symmetric_difference(off) & self.switches.keys()
        stale = set[Node]().union(*(self.after[name] for name in changed))
        nodes = sorted(stale, key=self.order.__getitem__)
        return self._computed(frozenset(off), dict(trace.values), nodes)

    def kernel(self, site: Site, fed: tuple[Tensor, ...]) -> Any:
        """What the layer's integer kernel makes of float values, in float."""
        step = self.kernels[site.actual]
        return tree_map(_plain, step.rerun(as_fed(fed, step.inputs)))

    def _computed(self, off: frozenset[str], values: Values, nodes: Iterable[Node]) -> Trace:
        on = {site for name, group in self.switches.items() if name not in off for site in group}
        done = set[Node]()
        computed = 0
        with torch.inference_mode():
            for node in nodes:
                if node.op in ("placeholder", "output") or node in done:
                    continue
                site = self.starts.get(node)
                computed += 1
                if site in on:
                    end, *inner = self.spans[site]
                    done.update((end, *inner))
                    values[end] = self.kernel(site, self.program.fed(node, values))
                else:
                    values[node] = self.program.value(node, values, keep=True)
        return Trace(off, values, computed)

    def _descendants(self, group: Iterable[Site]) -> frozenset[Node]:
        """All nodes whose value depends on one of these layers."""
        sites = set(group)
        found = {node for node, site in self.starts.items() if site in sites}
        for node in self.program.nodes:
            if found.intersection(node.all_input_nodes):
                found.add(node)
        return frozenset(found)


def _plain(leaf: Any) -> Any:
    return plain(leaf) if isinstance(leaf, Tensor) and leaf.is_quantized else leaf


def _kernels(actual: Program, example: Inputs, sites: Iterable[Site]) -> Mapping[str, Step]:
    """Each layer's kernel, with the scales that it takes."""
    wanted = {site.actual for site in sites}
    with torch.inference_mode():
        return {step.node: step for step in actual.run(example, wanted) if step.node in wanted}


def _switches(sites: Iterable[Site]) -> dict[str, tuple[Site, ...]]:
    """Layers with weights with all their calls, and single calls of functions."""
    sites = list(sites)
    weighted = {site.layer for site in sites if site.params}
    found: dict[str, tuple[Site, ...]] = {}
    for site in sites:
        called = site.layer.partition("#")[0]
        name = called if called in weighted else site.layer
        found[name] = (*found.get(name, ()), site)
    return found


def _span(start: Node, end: Node) -> tuple[Node, ...]:
    """The nodes that a fused layer stands for: its last one, then all others from the last to the first."""
    found = [end]
    while found[-1] is not start:
        found.append(next(node for node in found[-1].all_input_nodes if _leads(start, node)))
    return tuple(found)


def _leads(start: Node, node: Node) -> bool:
    return node is start or any(_leads(start, one) for one in node.all_input_nodes)
