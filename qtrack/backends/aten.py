"""An exported graph read as layers: what computes, what was fused to it, and the float model's names.

Names are those of the other backends: a module's dotted name, or for a function the module around it and the
function's own name, a second call told apart by ``#2``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from qtrack.backends.assignment import UserModule
from qtrack.recipe import Call, Module, bare_name

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
WEIGHTED = {*CONVOLUTIONS, *TRANSPOSED, "linear"}
LOOKUPS = {"embedding"}
COMPUTES = {
    *("add", "mul", "matmul", "hardswish", "leaky_relu", "elu", "prelu", "layer_norm", "batch_norm"),
    *("instance_norm", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
}
"""Functions with an output range of their own."""
SHARES = {"cat", "mean", "upsample_nearest2d", "pixel_shuffle"}
"""Functions whose output keeps the scale of their input."""
FIXED = {
    "sigmoid": (1 / 256, 0),
    "hardsigmoid": (1 / 256, 0),
    "softmax": (1 / 256, 0),
    "tanh": (2 / 256, 128),
}
"""Scale and zero-point of functions whose range is known."""
FUSED_ACTIVATIONS = {"relu", "hardtanh"}


@dataclass(frozen=True, eq=False)
class Layer:
    """One operator with what is fused to it."""

    name: str
    type: str
    function: str
    anchor: Node
    """Takes the inputs."""
    end: Node
    """Gives the output."""
    inputs: tuple[Node, ...]
    """Floating-point arguments that the network computed."""
    weight: Node | None
    lineage: tuple[Module | Call, ...] = field(repr=False)

    @property
    def holds_weights(self) -> bool:
        """Is it a layer whose weights can be quantized?"""
        return self.function in WEIGHTED | LOOKUPS


def function_of(node: Node) -> str:
    """``add`` for ``aten.add_.Tensor``; empty for what is no operator of aten."""
    if node.op != "call_function" or getattr(node.target, "namespace", None) != "aten":
        return ""
    return bare_name(str(node.target).split(".")[1])


def layers_of(graph: Graph, modules: Mapping[str, UserModule]) -> list[Layer]:
    """All operators that compute, in execution order."""
    found: list[Layer] = []
    taken: Counter[str] = Counter()
    for node in graph.nodes:
        function = function_of(node)
        if function in WEIGHTED | LOOKUPS | COMPUTES | SHARES | FIXED.keys() and not _is_fused(node):
            plain, kind, lineage = _named(node, function, modules)
            taken[plain] += 1
            name = plain if taken[plain] == 1 else f"{plain}#{taken[plain]}"
            if not _is_module(lineage[-1] if lineage else None, plain):
                lineage = (*lineage, Call(name, function))
            inputs, weight = _arguments(node, function)
            found.append(Layer(name, kind, function, node, _end(node, function), inputs, weight, lineage))
    return found


def _is_module(place: Module | Call | None, name: str) -> bool:
    return isinstance(place, Module) and place.name == name


def name_after_weights(graph: Graph, model: nn.Module) -> None:
    """Let an operator count as that module's whose weight it takes, also where another's code calls it.

    MultiheadAttention computes with the weight of its ``out_proj`` without calling it.
    """
    modules = dict(model.named_modules())
    for node in graph.nodes:
        weight = _arguments(node, function_of(node))[1] if function_of(node) in WEIGHTED else None
        owner = str(weight.target).rpartition(".")[0] if weight is not None else ""
        if owner in modules and owner not in _module_paths(node):
            kind = type(modules[owner])
            entry = owner, f"{kind.__module__}.{kind.__qualname__}"
            node.meta["nn_module_stack"] = {**(node.meta.get("nn_module_stack") or {}), owner: entry}


def computed_from(node: Node) -> Node:
    """The node from which conversions made this one."""
    while is_conversion(node):
        node = node.all_input_nodes[0]
    return node


def is_conversion(node: Node) -> bool:
    """Does it only quantize, dequantize, or find out with which scale to?"""
    target = node.target
    return node.op == "call_function" and (
        getattr(target, "namespace", "") in ("quantized_decomposed", "torchao")
        or (getattr(target, "__name__", "") == "getitem" and is_conversion(node.all_input_nodes[0]))
    )


def _parameter(argument: Any) -> Node | None:
    """The node where the graph holds it, whatever was done to its type; None where it was computed."""
    held = isinstance(argument, Node) and computed_from(argument).op == "get_attr"
    return argument if held else None


def _arguments(node: Node, function: str) -> tuple[tuple[Node, ...], Node | None]:
    """What the network computed, and the weight."""
    if function in LOOKUPS:
        return (), _parameter(node.args[0])
    first = node.args[0]
    candidates: Any = first if isinstance(first, list | tuple) else node.args
    if function in WEIGHTED:
        inputs = [first] if isinstance(first, Node) and is_floating(first) else []
        return tuple(inputs), _parameter(node.args[1])
    return tuple(
        n for n in candidates if isinstance(n, Node) and is_floating(n) and _parameter(n) is None
    ), None


def is_floating(node: Node) -> bool:
    """Is it a tensor of floating-point numbers?"""
    value = computed_from(node).meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _end(node: Node, function: str) -> Node:
    """After BatchNorm behind a convolution, and an activation that a kernel computes with it."""
    end = node
    if function in CONVOLUTIONS | TRANSPOSED:
        end = _only_user(end, {"batch_norm"}) or end
    if function in WEIGHTED or function in ("add", "mul"):
        end = _only_user(end, FUSED_ACTIVATIONS) or end
    return end


def _only_user(node: Node, functions: set[str]) -> Node | None:
    (user, *others) = node.users or (None,)
    return user if user is not None and not others and function_of(user) in functions else None


def _is_fused(node: Node) -> bool:
    """Is it the BatchNorm of a convolution?"""
    before = node.args[0] if node.args else None
    return (
        function_of(node) == "batch_norm"
        and isinstance(before, Node)
        and function_of(before) in CONVOLUTIONS | TRANSPOSED
        and len(before.users) == 1
    )


def _named(
    node: Node, function: str, modules: Mapping[str, UserModule]
) -> tuple[str, str, tuple[Module | Call, ...]]:
    """Name, type and the modules around it, root first."""
    paths = _module_paths(node)
    lineage: tuple[Module | Call, ...] = tuple(
        Module(path, modules[path].type) for path in paths if path in modules and path
    )
    innermost = paths[-1] if paths else ""
    if innermost in modules and _is_torchs(node):
        return innermost, modules[innermost].type, lineage
    return (f"{innermost}.{function}" if innermost else function), function, lineage


def _is_torchs(node: Node) -> bool:
    """Was the node met in code of a module of torch's own, which is a layer as a whole?"""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    return bool(stack) and "torch.nn.modules." in str(list(stack.values())[-1][1])


def _module_paths(node: Node) -> list[str]:
    """Dotted names of the modules in whose code the node was met; ``@1`` marks a second call."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    return [re.sub(r"@\d+", "", str(path)) for path, _ in stack.values()]
