"""A quantized network whose layers can be switched back to float one by one, without converting it again.

Each layer that is on runs its own integer kernel, fed with what comes to it in the mixture, quantized as its
input is in the quantized network; each that is off runs as in the fused float network. Calibration ranges do
not depend on which layers are quantized (observers see float values), so one conversion stands for every
mixture; but where calls of one layer differ in range, torch.ao gives them one scale in the quantized network
and each its own behind a layer in float. From one mixture to another only what depends on a switched layer is
computed again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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
        self.switch_of = _switches(sites)
        self.switches: dict[str, tuple[Site, ...]] = {}
        for site, name in self.switch_of.items():
            self.switches[name] = (*self.switches.get(name, ()), site)
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

    def coupled(self) -> list[frozenset[str]]:
        """Layers that must share a scale, as inputs of a concatenation, with the function they go to."""
        found: list[frozenset[str]] = []
        for node, site in self.starts.items():
            if _shares_scales(self.kernels[site.actual]):
                group = {self.switch_of[one] for one in (site, *self._producers(node))}
                apart = [one for one in found if not one & group]
                merged = group.union(*(one for one in found if one & group))
                found = [*apart, frozenset(merged)]
        return found

    def _producers(self, node: Node) -> set[Site]:
        """The layers whose outputs a node takes, past what only moves values."""
        ends = {span[0]: site for site, span in self.spans.items()}
        found = set[Site]()
        for one in node.all_input_nodes:
            found |= {ends[one]} if one in ends else self._producers(one)
        return found

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


def _switches(sites: Sequence[Site]) -> dict[Site, str]:
    """The switch of each site: one for all calls of a layer with weights, one for each call of others."""
    weighted = {site.layer for site in sites if site.params}
    called = {site: site.layer.partition("#")[0] for site in sites}
    return {site: name if name in weighted else site.layer for site, name in called.items()}


def _shares_scales(kernel: Step) -> bool:
    scales = [(one.q_scale(), one.q_zero_point()) for one in kernel.inputs if one.is_quantized]
    return len(scales) > 1 and len(set(scales)) == 1 and len({id(one) for one in kernel.inputs}) > 1


def _span(start: Node, end: Node) -> tuple[Node, ...]:
    """The nodes that a fused layer stands for: its last one, then all others from the last to the first."""
    found = [end]
    while found[-1] is not start:
        found.append(next(node for node in found[-1].all_input_nodes if _leads(start, node)))
    return tuple(found)


def _leads(start: Node, node: Node) -> bool:
    return node is start or any(_leads(start, one) for one in node.all_input_nodes)
