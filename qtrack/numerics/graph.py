"""Runs a traced network node by node, handing out the nodes that one wants to look at."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten

from qtrack.numerics.steps import OUTPUT, Inputs, Step, cannot_rerun

Values = dict[Node, Any]


class Program:
    """A graph made ready to be run many times.

    Modules that are ``transparent`` (observers) are passed through.
    """

    def __init__(
        self, module: GraphModule, transparent: Callable[[Any], bool] = lambda module: False
    ) -> None:
        self.nodes: list[Node] = list(module.graph.nodes)
        self.module = module
        self.functions = {node: _function(module, node) for node in self.nodes}
        self.passed = {
            node
            for node in self.nodes
            if node.op == "call_module" and transparent(module.get_submodule(str(node.target)))
        }
        self.done_after = _last_uses(self.nodes)

    def run(self, inputs: Inputs, wanted: Collection[str]) -> Iterator[Step]:
        """Run up to the output; each value is dropped after its last use."""
        values: Values = {}
        arguments = iter(inputs) if isinstance(inputs, tuple) else iter(())
        for node in self.nodes:
            if node.op == "output":
                yield Step(OUTPUT, (), map_arg(node.args[0], values.__getitem__), cannot_rerun)
                return
            values[node] = self._value(node, values, inputs, arguments)
            if node.name in wanted:
                yield self._step(node, values)
            for done in self.done_after.get(node, ()):
                del values[done]

    def timed(
        self, inputs: Inputs, clock: Callable[[], float], extra: Callable[[Any], Any] | None = None
    ) -> dict[str, float]:
        """Milliseconds of each node, within one run of all; with ``extra``, of that on each node's output."""
        values: Values = {}
        taken: dict[str, float] = {}
        arguments = iter(inputs) if isinstance(inputs, tuple) else iter(())
        for node in self.nodes[:-1]:
            began = clock()
            values[node] = self._value(node, values, inputs, arguments)
            if extra is not None:
                began = clock()
                extra(values[node])
            for done in self.done_after.get(node, ()):
                del values[done]
            taken[node.name] = 1000 * (clock() - began)
        return taken

    def _value(self, node: Node, values: Values, inputs: Inputs, arguments: Iterator[Any]) -> Any:
        if node.op == "placeholder":
            default = node.args[0] if node.args else None
            return (
                inputs.get(str(node.target), default)
                if isinstance(inputs, dict)
                else next(arguments, default)
            )
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.module)
        if node in self.passed:
            return values[node.all_input_nodes[0]]
        return self._call(node, values)

    def _call(self, node: Node, values: Values) -> Any:
        args = map_arg(node.args, values.__getitem__)
        kwargs = map_arg(node.kwargs, values.__getitem__)
        return self.functions[node](*args, **kwargs)

    def _step(self, node: Node, values: Values) -> Step:
        fed = [leaf for leaf in tree_flatten((node.args, dict(node.kwargs)))[0] if _is_fed(leaf, values)]
        kept = {used: values[used] for used in node.all_input_nodes}

        def rerun(replacements: tuple[Tensor, ...]) -> Any:
            return self._call(node, kept | dict(zip(fed, replacements, strict=True)))

        return Step(node.name, tuple(values[leaf] for leaf in fed), values[node], rerun)


def _function(module: GraphModule, node: Node) -> Callable[..., Any]:
    if node.op == "call_module":
        return module.get_submodule(str(node.target))
    if node.op == "call_method":
        name = str(node.target)
        return lambda receiver, *args, **kwargs: getattr(receiver, name)(*args, **kwargs)
    return node.target if callable(node.target) else cannot_rerun


def _last_uses(nodes: list[Node]) -> dict[Node, list[Node]]:
    """What can be dropped after each node."""
    last: dict[Node, Node] = {}
    for node in nodes:
        last[node] = node
        for used in node.all_input_nodes:
            last[used] = node
    uses: dict[Node, list[Node]] = {}
    for used, node in last.items():
        uses.setdefault(node, []).append(used)
    return uses


def _is_fed(argument: Any, values: Values) -> bool:
    """Is it a tensor that the network computed (no parameter or scale of the node itself)?"""
    return (
        isinstance(argument, Node) and argument.op != "get_attr" and isinstance(values.get(argument), Tensor)
    )
