"""Finds each layer of a prepared FX graph again in the converted one.

Modules keep their names. Functions are renamed when they are lowered (``operator.add`` and a ReLU after it
become ``quantized.add_relu``), but both graphs keep their order, so walking them side by side settles
which is which.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase
from torch.fx import GraphModule, Node

from qtrack.backends.assignment import UserModule
from qtrack.backends.layer_weights import (
    dequantized_weight,
    dynamic_dtype,
    folded_weight,
    looks_up_integers,
    stored_as,
)
from qtrack.backends.moves import moves_data
from qtrack.numerics import Pair, Site
from qtrack.numerics.graph import Program
from qtrack.recipe import bare_name
from qtrack.task import Inputs

CONVERSIONS = {"quantize_per_tensor", "dequantize", "to", "quantize_per_tensor_dynamic"}
STORED_SMALL = re.compile(r"(\.0)?\.parametrizations\.weight\.0\.")
"""Where a weight that is widened as it is used stands, in a layer alone or with an activation fused to it."""


def pair_graphs(
    reference: GraphModule, converted: GraphModule, modules: Mapping[str, UserModule], example: Inputs
) -> Pair:
    """Pair all layers with weights, and all functions that ran quantized."""
    quantized = _quantized_nodes(converted, example)
    names = Names(reference, modules)
    sites, moving = list[Site](), list[Site]()
    for index, (start, end, actual) in enumerate(_matches(reference, converted)):
        dtype = _dtype(converted, actual, quantized)
        module = _module(reference, start)
        params = modules[str(start.target)].params if module else 0
        layer, kind = names.of(start)
        place = index, layer, kind, dtype, params, start.name, end.name, actual.name
        if not params and (dtype == "float32" or moves_data(kind)):
            moving += [Site(*place)] if actual.name in quantized else []
            continue
        weights = folded_weight(module), dequantized_weight(_module(converted, actual))
        sites.append(Site(*place, *weights))
    moves = {site.layer: site.actual for site in moving}
    return Pair(Program(reference, _is_observer), Program(converted), tuple(sites), moves, tuple(moving))


def _is_observer(module: Any) -> bool:
    return isinstance(module, ObserverBase | FakeQuantizeBase)


def _quantized_nodes(graph: GraphModule, example: Inputs) -> set[str]:
    """Nodes whose output is a quantized tensor, seen by running the example once."""
    names = [node.name for node in graph.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    with torch.no_grad():
        steps = Program(graph).run(example, names)
        return {s.node for s in steps if isinstance(s.output, Tensor) and s.output.is_quantized}


def _matches(reference: GraphModule, converted: GraphModule) -> Iterator[tuple[Node, Node, Node]]:
    """Start and end in the reference with the node in the converted graph that does the same."""
    waiting = _work(reference)
    for actual in _work(converted):
        name = _base_name(converted, actual)
        fused = _is_lowered(actual) and name.endswith("_relu") and name != "leaky_relu"
        wanted = name.removesuffix("_relu") if fused else name
        place = next((i for i, node in enumerate(waiting) if _base_name(reference, node) == wanted), None)
        if place is None:  # torch.ao put it in
            continue
        start, waiting = waiting[place], waiting[place + 1 :]
        yield start, (_relu_after(reference, start) if fused else start), actual


def _work(graph: GraphModule) -> list[Node]:
    """Nodes that compute: no inputs, parameters, observers or conversions."""
    return [
        node
        for node in graph.graph.nodes
        if node.op in ("call_module", "call_function", "call_method")
        and not (node.op == "call_module" and _is_observer(_module(graph, node)))
        and _base_name(graph, node) not in CONVERSIONS
    ]


def _is_lowered(node: Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__module__", "") == "torch._ops.quantized"


def _relu_after(graph: GraphModule, node: Node) -> Node:
    """The activation that was fused into a function, past the observer between them where there is one."""
    (user,) = node.users
    return _relu_after(graph, user) if _is_observer(_module(graph, user)) else user


def _base_name(graph: GraphModule, node: Node) -> str:
    """A module's dotted name; a function's bare name, the same before and after lowering."""
    if node.op == "call_module":
        return str(node.target)
    return bare_name(str(getattr(node.target, "__name__", node.target)))


def _module(graph: GraphModule, node: Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


class Names:
    """The float model's name for each node: the module's, or the surrounding module's and the function's.

    A second call of the same module or function is told apart by ``#2``, counted in the graph's order.
    """

    def __init__(self, reference: GraphModule, modules: Mapping[str, UserModule]) -> None:
        attributes = reference.meta.get("_observed_graph_module_attrs")
        self.graph = reference
        self.scopes: Mapping[str, tuple[str, Any]] = attributes.node_name_to_scope if attributes else {}
        self.modules = modules
        self.known: dict[str, tuple[str, str]] = {}
        taken: Counter[str] = Counter()
        for node in _work(reference):
            name, kind = self._plain(node)
            taken[name] += 1
            self.known[node.name] = (name if taken[name] == 1 else f"{name}#{taken[name]}"), kind

    def of(self, node: Node) -> tuple[str, str]:
        """Name and type."""
        return self.known[node.name]

    def _plain(self, node: Node) -> tuple[str, str]:
        if node.op == "call_module":
            return str(node.target), self.modules[str(node.target)].type
        function = _base_name(self.graph, node)
        scope = self.scopes[node.name][0] if node.name in self.scopes else _innermost(node)
        return (f"{scope}.{function}" if scope else function), function


def _innermost(node: Node) -> str:
    """The module in which tracing met the node."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(list(stack.values())[-1][0])


def _dtype(graph: GraphModule, node: Node, quantized: set[str]) -> str:
    module = _module(graph, node)
    home = type(module).__module__
    if module is not None and "quantized.dynamic" in home:
        return dynamic_dtype(module)
    if looks_up_integers(module):
        return "int8_weight"
    if node.name in quantized or ".quantized" in home:
        return "int8"
    return stored_as(module) or "float32"


def qparams_of(converted: nn.Module) -> dict[str, Any]:
    """Scales and zero-points as plain numbers and lists, by the name of what they belong to.

    Those of a layer's weight are called ``LAYER.weight.scale`` whatever holds them.
    """
    found: dict[str, Any] = {}
    unused = {f"{name}." for name, module in converted.named_modules() if _is_dynamic(module)}
    for name, value in converted.state_dict().items():
        is_own = name.rpartition(".")[0] + "." not in unused
        if is_own and (name.endswith(("scale", "zero_point")) or "_scale_" in name or "_zero_point_" in name):
            found[STORED_SMALL.sub(".weight.", name)] = value.tolist()
    for name, module in converted.named_modules():
        weight = getattr(module, "weight", None)
        tensor = weight() if callable(weight) and not isinstance(weight, Tensor) else None
        if isinstance(tensor, Tensor) and tensor.is_quantized:
            found |= {f"{name}.weight.{key}": value for key, value in _weight_qparams(tensor).items()}
    return found


def _is_dynamic(module: nn.Module) -> bool:
    """Has it the attributes of a static layer without a use for them?"""
    return type(module).__module__.startswith("torch.ao.nn.quantized.dynamic")


def _weight_qparams(tensor: Tensor) -> dict[str, Any]:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
    scales, zero_points = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return {"scale": scales.tolist(), "zero_point": zero_points.tolist()}
