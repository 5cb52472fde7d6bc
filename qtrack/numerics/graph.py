"""Runs a traced network node by node, handing out the nodes that one wants to look at."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten

Inputs = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True, eq=False)
class Step:
    """One node as it ran: what went in (tensors only), what came out, and a way to run it on other inputs."""

    node: str
    inputs: tuple[Tensor, ...]
    output: Any
    rerun: Callable[[tuple[Tensor, ...]], Any]


def walk(
    module: GraphModule, inputs: Inputs, wanted: Collection[str], transparent: Callable[[Any], bool]
) -> Iterator[Step]:
    """Run the graph once, up to its output; each value is dropped after its last use.

    Modules that are ``transparent`` (observers) are passed through.
    """
    values: dict[Node, Any] = {}
    arguments = iter(inputs) if isinstance(inputs, tuple) else iter(())
    last_use = _last_uses(module)
    for node in module.graph.nodes:
        if node.op == "output":
            yield Step(node.name, (), map_arg(node.args[0], values.__getitem__), _cannot_rerun)
            return
        values[node] = _value(module, node, values, inputs, arguments, transparent)
        if node.name in wanted:
            yield _step(module, node, values)
        for done in last_use.get(node, ()):
            del values[done]


def _last_uses(module: GraphModule) -> dict[Node, list[Node]]:
    last: dict[Node, Node] = {}
    for node in module.graph.nodes:
        last[node] = node
        for used in node.all_input_nodes:
            last[used] = node
    uses: dict[Node, list[Node]] = {}
    for used, node in last.items():
        uses.setdefault(node, []).append(used)
    return uses


def _value(
    module: GraphModule,
    node: Node,
    values: dict[Node, Any],
    inputs: Inputs,
    arguments: Iterator[Any],
    transparent: Callable[[Any], bool],
) -> Any:
    if node.op == "placeholder":
        return _argument(node, inputs, arguments)
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(module)
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        if transparent(called):
            return values[node.all_input_nodes[0]]
    return _run(
        module, node, map_arg(node.args, values.__getitem__), map_arg(node.kwargs, values.__getitem__)
    )


def _argument(node: Node, inputs: Inputs, arguments: Iterator[Any]) -> Any:
    default = node.args[0] if node.args else None
    if isinstance(inputs, dict):
        return inputs.get(str(node.target), default)
    return next(arguments, default)


def _run(module: GraphModule, node: Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _step(module: GraphModule, node: Node, values: dict[Node, Any]) -> Step:
    fed = [a for a in tree_flatten((node.args, dict(node.kwargs)))[0] if _is_fed(a, values)]
    present = dict(values)

    def rerun(replacements: tuple[Tensor, ...]) -> Any:
        by_node = {
            **{n: present[n] for n in node.all_input_nodes},
            **dict(zip(fed, replacements, strict=True)),
        }
        return _run(
            module, node, map_arg(node.args, by_node.__getitem__), map_arg(node.kwargs, by_node.__getitem__)
        )

    return Step(node.name, tuple(values[a] for a in fed), values[node], rerun)


def _cannot_rerun(replacements: tuple[Tensor, ...]) -> Any:
    raise AssertionError("a network's output is no layer")


def _is_fed(argument: Any, values: dict[Node, Any]) -> bool:
    """Is it a tensor that the network computed (no parameter or scale of the node itself)?"""
    return (
        isinstance(argument, Node)
        and argument.op != "get_attr"
        and isinstance(values.get(argument), torch.Tensor)
    )
