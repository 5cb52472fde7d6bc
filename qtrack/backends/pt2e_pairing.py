"""Finds each layer of a converted export in its float form, and runs both so that they can be compared.

A layer of an export is a chain of nodes: conversions of its inputs, the operator with what was fused to it,
the conversion of its output. It is handed out as one step whose integers are tensors of integers, as an
engine's kernel would have them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qtrack.backends.assignment import UserModule
from qtrack.backends.aten import Layer, computed_from, is_conversion
from qtrack.backends.pt2e_graph import value_of
from qtrack.numerics import Pair, Site
from qtrack.numerics.graph import Program, Values
from qtrack.numerics.steps import Step
from qtrack.recipe import AnyScheme, Dynamic, Static, WeightOnly

QUANTIZE, DYNAMIC = "quantize_per_tensor", "choose_qparams"


@dataclass(frozen=True, eq=False)
class Chain:
    """The nodes of one layer in a converted graph."""

    sources: tuple[Node, ...]
    """What the inputs were before they were converted."""
    nodes: tuple[Node, ...]
    """In execution order."""
    end: Node
    quantized: Node | None
    """The node that gives the output's integers, where it has any."""

    @property
    def last(self) -> Node:
        """After it, all is there."""
        return self.quantized or self.end


def pair_exports(
    reference: GraphModule,
    converted: GraphModule,
    references: Sequence[Layer],
    layers: Sequence[Layer],
    schemes: Mapping[str, AnyScheme],
    modules: Mapping[str, UserModule],
) -> Pair:
    """Pair the layers of both graphs by name; layers without weights only where they are quantized."""
    floats = {layer.name: layer for layer in references}
    sites, chains = [], {}
    for index, layer in enumerate(layers):
        chain = chain_of(layer)
        dtype = dtype_of(layer, chain, schemes[layer.name])
        twin = floats[layer.name]
        if dtype == "float32" and not layer.holds_weights:
            continue
        chains[chain.last.name] = chain
        params = modules[layer.name].params if layer.holds_weights and layer.name in modules else 0
        weights = weight_of(reference, twin.weight), weight_of(converted, layer.weight)
        ends = twin.anchor.name, twin.end.name, chain.last.name
        sites.append(Site(index, layer.name, layer.type, dtype, params, *ends, *weights))
    return Pair(Program(reference), _Chained(converted, chains), tuple(sites))


def dtype_of(layer: Layer, chain: Chain, scheme: AnyScheme) -> str:
    """What it really runs in."""
    narrow = layer.weight is not None and is_conversion(layer.weight)
    if isinstance(scheme, WeightOnly) and narrow:
        return "int8_weight"
    if isinstance(scheme, Dynamic) and narrow:
        return "int8_dynamic"
    fed = [is_conversion(node) for node in layer.inputs]
    full = isinstance(scheme, Static) and bool(fed) and all(fed) and (narrow or not layer.holds_weights)
    return "int8" if full and (narrow or chain.quantized is not None) else "float32"


def chain_of(layer: Layer) -> Chain:
    """From the conversions of its inputs to that of its output."""
    sources = tuple(computed_from(node) for node in layer.inputs)
    nodes: list[Node] = []
    for node in layer.inputs:
        nodes += reversed(list(_conversions(node)))
    node = layer.anchor
    nodes.append(node)
    while node is not layer.end:
        (node,) = node.users
        nodes.append(node)
    quantized = next((user for user in layer.end.users if _named(user, QUANTIZE)), None)
    if quantized is not None:
        nodes.append(quantized)
    return Chain(sources, tuple(dict.fromkeys(nodes)), layer.end, quantized)


def _conversions(node: Node) -> Iterator[Node]:
    """The conversions that lead to a node, the last first; scales that are found while it runs among them."""
    while is_conversion(node):
        yield node
        for other in node.all_input_nodes[1:]:
            if is_conversion(other):
                yield other
                yield from (one for one in other.all_input_nodes if _named(one, DYNAMIC))
        node = node.all_input_nodes[0]


def weight_of(program: GraphModule, node: Node | None) -> Tensor | None:
    """The weight in float, dequantized where it is held as integers."""
    value = None if node is None else value_of(program, node)
    return value if isinstance(value, Tensor) else None


def _named(node: Node, what: str) -> bool:
    return str(node.target).startswith(f"quantized_decomposed.{what}")


class _Chained(Program):
    """A converted graph that hands out whole layers."""

    def __init__(self, module: GraphModule, chains: Mapping[str, Chain]) -> None:
        super().__init__(module)
        self.chains = chains
        self._keep_what_chains_need()

    def _keep_what_chains_need(self) -> None:
        """Until the chain's end, for running it again."""
        place = {node: i for i, node in enumerate(self.nodes)}
        last = {used: node for node, uses in self.done_after.items() for used in uses}
        for chain in self.chains.values():
            for used in {*_externals(chain), *chain.nodes, *chain.sources}:
                if place[last[used]] < place[chain.last]:
                    last[used] = chain.last
        self.done_after = {}
        for used, node in last.items():
            self.done_after.setdefault(node, []).append(used)

    def _step(self, node: Node, values: Values) -> Step:
        chain = self.chains[node.name]
        kept = {used: values[used] for used in _externals(chain)}
        inputs = tuple(_as_integers(_integers_of(source, chain), values, source) for source in chain.sources)

        def rerun(replacements: tuple[Tensor, ...]) -> Any:
            found: Values = dict(kept)
            for source, value in zip(chain.sources, replacements, strict=True):
                found[source] = value.dequantize() if value.is_quantized else value
            for one in chain.nodes:
                found[one] = self._call(one, found)
            return _as_integers(chain.quantized, found, chain.end)

        return Step(node.name, inputs, _as_integers(chain.quantized, values, chain.end), rerun)


def _externals(chain: Chain) -> set[Node]:
    """What the chain reads beside its inputs: weights, scales."""
    own = {*chain.nodes, *chain.sources}
    return {used for node in chain.nodes for used in node.all_input_nodes if used not in own}


def _integers_of(source: Node, chain: Chain) -> Node | None:
    """The node that gives a static input's integers."""
    return next(
        (
            node
            for node in chain.nodes
            if _named(node, QUANTIZE)
            and node.args[0] is source
            and _is_fixed(node)
            and node is not chain.quantized
        ),
        None,
    )


def _is_fixed(node: Node) -> bool:
    return all(isinstance(argument, Node) and argument.op == "get_attr" for argument in node.args[1:3])


def _as_integers(quantized: Node | None, values: Values, plain: Node) -> Any:
    """A tensor of integers with its scale; as it is where the layer's end is in float."""
    if quantized is None:
        return values[plain]
    scale, zero_point = (values[argument] for argument in quantized.args[1:3])  # type: ignore[index]
    return torch._make_per_tensor_quantized_tensor(values[quantized], float(scale), int(zero_point))
