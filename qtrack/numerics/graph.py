"""Runs a traced network node by node, handing out the nodes that one wants to look at."""

from __future__ import annotations

import operator
import re
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
        self.overwriting = {node for node in self.nodes if _overwrites(module, node)}
        self.done_after = _last_uses(self.nodes)

    def run(self, inputs: Inputs, wanted: Collection[str]) -> Iterator[Step]:
        """Run up to the output; each value is dropped after its last use."""
        values = self.given(inputs)
        for node in self.nodes:
            if node.op == "output":
                yield Step(OUTPUT, (), self.output(values), cannot_rerun)
                return
            if node.op != "placeholder":
                values[node] = self.value(node, values)
            if node.name in wanted:
                yield self._step(node, values)
            for done in self.done_after.get(node, ()):
                del values[done]

    def timed(
        self, inputs: Inputs, clock: Callable[[], float], extra: Callable[[Any], Any] | None = None
    ) -> dict[str, float]:
        """Milliseconds of each node, within one run of all; with ``extra``, of that on each node's output."""
        values = self.given(inputs)
        taken: dict[str, float] = {}
        for node in self.nodes[:-1]:
            began = clock()
            if node.op != "placeholder":
                values[node] = self.value(node, values)
            if extra is not None:
                began = clock()
                extra(values[node])
            for done in self.done_after.get(node, ()):
                del values[done]
            taken[node.name] = 1000 * (clock() - began)
        return taken

    def given(self, inputs: Inputs) -> Values:
        """The values that a run begins with."""
        arguments = iter(inputs) if isinstance(inputs, tuple) else iter(())
        found: Values = {}
        for node in self.nodes:
            if node.op == "placeholder":
                default = node.args[0] if node.args else None
                found[node] = (
                    inputs.get(str(node.target), default)
                    if isinstance(inputs, dict)
                    else next(arguments, default)
                )
        return found

    def value(self, node: Node, values: Values, *, keep: bool = False) -> Any:
        """What a node comes to, from the values of those before it; ``keep``: which must stay as they are."""
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.module)
        if node in self.passed:
            return values[node.all_input_nodes[0]]
        if keep and node in self.overwriting:
            values = {used: _copied(values[used]) for used in node.all_input_nodes}
        return self._call(node, values)

    def output(self, values: Values) -> Any:
        """What the network gives, once all nodes have their values."""
        (last,) = (node for node in self.nodes if node.op == "output")
        return map_arg(last.args[0], values.__getitem__)

    def fed(self, node: Node, values: Values) -> tuple[Tensor, ...]:
        """The tensors that a node works on, but for its own parameters."""
        return tuple(values[leaf] for leaf in _fed(node, values))

    def _call(self, node: Node, values: Values) -> Any:
        args = map_arg(node.args, values.__getitem__)
        kwargs = map_arg(node.kwargs, values.__getitem__)
        return self.functions[node](*args, **kwargs)

    def _step(self, node: Node, values: Values) -> Step:
        fed = _fed(node, values)
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


def _overwrites(module: GraphModule, node: Node) -> bool:
    """Does it write into what it is given?"""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]  # of add_.Tensor: add_
    in_place = re.fullmatch(r"i(add|sub|mul|truediv)|[a-z]\w*[a-z0-9]_", name) is not None
    return in_place or node.kwargs.get("inplace") is True


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


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


def _fed(node: Node, values: Values) -> list[Node]:
    return [leaf for leaf in tree_flatten((node.args, dict(node.kwargs)))[0] if _is_fed(leaf, values)]


def _is_fed(argument: Any, values: Values) -> bool:
    """Is it a tensor that the network computed (no parameter or scale of the node itself)?"""
    return (
        isinstance(argument, Node) and argument.op != "get_attr" and isinstance(values.get(argument), Tensor)
    )
