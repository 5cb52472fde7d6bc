"""Which layers of a pair hand tensors to which: these are converted where the two run in different types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch.fx import Node

from qtrack.numerics.graph import Program
from qtrack.numerics.sites import Pair, Site


@dataclass(frozen=True)
class Wire:
    """A tensor of the reference and who reads it; a layer is None where it is not one that can be chosen."""

    node: str
    """That gives it."""
    producer: str | None
    consumers: tuple[tuple[str, str | None], ...]
    """Nodes, and the layers that they are a part of."""


class Wiring:
    """The layers of a pair of graphs, in the reference."""

    def __init__(self, pair: Pair) -> None:
        assert isinstance(pair.reference, Program)
        self.program = pair.reference
        self.nodes = {node.name: node for node in self.program.nodes}
        self.sites = tuple(sorted((*pair.sites, *pair.moving), key=lambda site: site.index))
        self.spans = {site.layer: self._span(site) for site in self.sites}
        self.owners = {name: self.layer(site) for site in self.sites for name in self.spans[site.layer]}
        self.ends = {site.end: self.layer(site) for site in self.sites}

    def layer(self, site: Site) -> str:
        """The name by which it is chosen: all calls of a module have that of the module."""
        return site.layer.partition("#")[0] if self.is_module(site) else site.layer

    def is_module(self, site: Site) -> bool:
        """Else it is a call of a function."""
        return self.nodes[site.start].op == "call_module"

    def is_method(self, site: Site) -> bool:
        """A call that belongs to a tensor."""
        return self.nodes[site.start].op == "call_method"

    def outside(self) -> list[str]:
        """Nodes that compute and are a part of no layer."""
        return [name for name, node in self.nodes.items() if self._works(node) and name not in self.owners]

    def wires(self) -> list[Wire]:
        """All that have a layer at one end at least."""
        found = []
        for name, node in self.nodes.items():
            inside = name in self.owners and name not in self.ends
            if inside or not (self._works(node) or node.op == "placeholder"):
                continue
            readers = tuple((user.name, self.owners.get(user.name)) for user in self._readers(node))
            if self.ends.get(name) or any(layer for _, layer in readers):
                found.append(Wire(name, self.ends.get(name), readers))
        return found

    def _works(self, node: Node) -> bool:
        return node.op.startswith("call_") and node not in self.program.passed

    def _readers(self, node: Node) -> Iterator[Node]:
        for user in node.users:
            if user in self.program.passed:
                yield from self._readers(user)
            else:
                yield user

    def _span(self, site: Site) -> tuple[str, ...]:
        """From the node that takes its inputs to the one that gives its output."""
        names, node = [site.start], self.nodes[site.start]
        while node.name != site.end:
            (node,) = node.users
            names.append(node.name)
        return tuple(names)


def total(times: Mapping[str, float], nodes: tuple[str, ...]) -> float:
    """Of these nodes."""
    return sum(times.get(name, 0.0) for name in nodes)
