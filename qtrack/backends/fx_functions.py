"""Overrides that name a function, or one call of it, as torch.ao is told of them.

torch.ao tells calls apart by the module they stand in, the function and a number, counted in the graph after
fusion; so the model is prepared once without these overrides to see that graph. Methods of tensors have no
number in torch.ao: where an override is for some calls of a method and not for others, it is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.ao.quantization import QConfigMapping
from torch.ao.quantization.backend_config import ObservationType, get_native_backend_config
from torch.fx import GraphModule, Node

from qtrack.backends.assignment import refuse_unmatched
from qtrack.backends.fx_pairing import Names
from qtrack.errors import RecipeError
from qtrack.recipe import AnyScheme, Call, Float, Module, Override, Recipe, Static

INHERITED = (
    ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT,
    ObservationType.INPUT_OUTPUT_NOT_OBSERVED,
)
FIXED = (
    *(torch.sigmoid, torch.tanh, nn.functional.hardsigmoid, nn.functional.softmax),
    *("sigmoid", "sigmoid_", "tanh", "tanh_", "hardsigmoid", "hardsigmoid_"),
)
"""What has a range known beforehand."""


class FunctionCall(NamedTuple):
    """A call in the graph: its name for people, and how torch.ao tells it from others."""

    call: Call
    node: Node
    scope: str
    number: int
    """Among the calls of this function in this module."""


def calls_in(prepared: GraphModule, names: Names) -> list[FunctionCall]:
    """Every call of a function or method, in execution order."""
    seen: Counter[Any] = Counter()
    found = []
    for node in prepared.graph.nodes:
        if node.op in ("call_function", "call_method") and node.name in names.scopes:
            scope = names.scopes[node.name][0]
            found.append(FunctionCall(Call(*names.of(node)), node, scope, seen[scope, node.target]))
            seen[scope, node.target] += 1
    return found


def add_overrides(
    mapping: QConfigMapping,
    calls: list[FunctionCall],
    recipe: Recipe,
    lineages: Mapping[str, tuple[Module, ...]],
    qconfigs: Any,
) -> list[str]:
    """Tell torch.ao of each call whose last matching override names calls; ``qconfigs(scheme, function)``.

    The result is the nodes that are to run in float.
    """
    wanted = [_override(call, recipe, lineages) for call in calls]
    refuse_unmatched(recipe, [call.call for call in calls])
    for call, override in zip(calls, wanted, strict=True):
        if override is None:
            continue
        _refuse_impossible(call, override, recipe)
        qconfig = qconfigs(override.scheme, call.node.target)
        if call.node.op == "call_function":
            target: Any = call.node.target
            mapping.set_module_name_object_type_order(call.scope, target, call.number, qconfig)
        else:
            _refuse_some(call, override, calls, wanted)
            mapping.set_object_type(call.node.target, qconfig)
    pairs = zip(calls, wanted, strict=True)
    return [call.node.name for call, override in pairs if override and isinstance(override.scheme, Float)]


def hold_float(prepared: GraphModule, names: Collection[str]) -> None:
    """Keep torch.ao from lowering these nodes.

    It takes a pool, cat, mean or sigmoid between a dequantization and the next quantization for one that runs
    on integers, whatever was said of it; so something is put in between.
    """
    for node in list(prepared.graph.nodes):
        if node.name in names:
            with prepared.graph.inserting_after(node):
                held = prepared.graph.call_function(as_it_is, (node,))
            node.replace_all_uses_with(held, delete_user_cb=lambda user, held=held: user is not held)
    prepared.recompile()


def as_it_is(value: Any) -> Any:
    """Does nothing, and no pattern of torch.ao's knows it."""
    return value


def _override(
    call: FunctionCall, recipe: Recipe, lineages: Mapping[str, tuple[Module, ...]]
) -> Override | None:
    """The last that matches, if it is one that names calls."""
    found = recipe.override_for((*lineages.get(call.scope, ()), call.call))
    return found if found is not None and found.names_calls else None


def _refuse_some(
    call: FunctionCall, override: Override, calls: list[FunctionCall], wanted: list[Override | None]
) -> None:
    method = call.node.target
    schemes: list[AnyScheme | None] = [
        other.scheme if other else None
        for one, other in zip(calls, wanted, strict=True)
        if one.node.op == "call_method" and one.node.target == method
    ]
    if any(scheme != override.scheme for scheme in schemes):
        raise RecipeError(
            f"{override}: torch.ao cannot tell calls of the method {method!r} apart: write torch.{method}()"
        )


def _refuse_impossible(call: FunctionCall, override: Override, recipe: Recipe) -> None:
    """Kernels that are not there, and scales that are not the function's own."""
    if not isinstance(override.scheme, Static):
        return
    known = _observations()
    if call.node.target not in known:
        raise RecipeError(f"{override}: fx has no static kernel for {call.call.name} ({call.call.function})")
    default = recipe.default
    other = isinstance(default, Static) and default.activation != override.scheme.activation
    if other and (call.node.target in FIXED or known[call.node.target] in INHERITED):
        raise RecipeError(
            f"{override}: torch.ao gives {call.call.function} no scale of its own; it runs as what goes in, "
            "or in float"
        )


@cache
def _observations() -> dict[Any, ObservationType]:
    """How torch.ao observes each function that it has kernels for."""
    return {config.pattern: config.observation_type for config in get_native_backend_config().configs}
