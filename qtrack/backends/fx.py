"""The fx backend: torch.ao's FX graph mode.

What a recipe says is resolved first, and given to torch.ao by exact name. Functions (add, cat, ...) follow
the override that names them, else the default scheme, or the module around them where that is left in float.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn
from torch.ao.quantization import (
    QConfig,
    QConfigMapping,
    default_placeholder_observer,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx, prepare_fx, prepare_qat_fx
from torch.fx import GraphModule

from qtrack.backends.assignment import RECURRENT, Assignment, assign, lineages_of, some, torchs_own
from qtrack.backends.base import BOTH, Prepared, Quantized, Side, has_weights, holds_weights
from qtrack.backends.engines import quiet
from qtrack.backends.finishing import finish
from qtrack.backends.fx_functions import add_overrides, calls_in, hold_float
from qtrack.backends.fx_pairing import Names, pair_graphs, qparams_of
from qtrack.backends.fx_reference import one_sided, recorded_reference, take_parameters
from qtrack.backends.fx_tracing import explain, untraceable
from qtrack.backends.observers import search_ranges
from qtrack.backends.torch_ao import (
    fake_quantize,
    first_line,
    freeze_bn_stats,
    layer_qconfig,
    observe,
    per_tensor_qconfig,
    static_qconfig,
    without_quantization,
)
from qtrack.errors import BackendError
from qtrack.recipe import AnyScheme, Dynamic, Float, Recipe, Static
from qtrack.task import Inputs


class FxBackend:
    """Symbolic tracing, observers in the graph, kernels of the engine."""

    observe = staticmethod(observe)
    fake_quantize = staticmethod(fake_quantize)
    freeze_bn_stats = staticmethod(freeze_bn_stats)

    def prepare(self, model: nn.Module, recipe: Recipe, example: Inputs) -> Prepared:
        details = assign(model, recipe, torchs_own(model))
        mapping = _mapping(model, recipe, details.schemes)
        in_float: list[str] = []
        if any(override.names_calls for override in recipe.overrides):
            seen = self._prepare(copy.deepcopy(model), recipe, details.schemes, mapping, example)
            calls = calls_in(seen, Names(seen, details.modules))
            lineages = lineages_of(model)
            in_float = add_overrides(mapping, calls, recipe, lineages, _function_qconfigs(recipe))
        prepared = self._prepare(model, recipe, details.schemes, mapping, example)
        hold_float(prepared, [*in_float, *_without_weights(prepared, recipe, details)])
        return Prepared(prepared, recipe, details)

    def _prepare(
        self,
        model: nn.Module,
        recipe: Recipe,
        schemes: Mapping[str, AnyScheme],
        mapping: QConfigMapping,
        example: Inputs,
    ) -> GraphModule:
        opaque = untraceable(model, _left_whole(model, recipe, schemes), recipe.non_traceable)
        custom = PrepareCustomConfig().set_non_traceable_module_names(opaque)
        arguments = tuple(example.values()) if isinstance(example, dict) else example
        training = recipe.training is not None
        try:
            with quiet():
                if training:
                    return prepare_qat_fx(model.train(), mapping, arguments, custom)
                return prepare_fx(model.eval(), mapping, arguments, custom)
        except Exception as cause:  # torch.fx and torch.ao raise whatever the model's code led to
            raise BackendError(explain(cause, model, opaque)) from cause

    def convert(self, prepared: Prepared, example: Inputs) -> Quantized:
        search_ranges(prepared.model)
        reference = without_quantization(_copy(prepared.model))
        details: Assignment = prepared.details
        try:
            with quiet():
                converted = convert_fx(_copy(prepared.model).eval())
                finish(converted, details.schemes)
        except Exception as cause:  # kernels refuse what they cannot pack
            raise BackendError(f"torch.ao could not convert the model: {first_line(cause)}") from cause
        try:
            pair = pair_graphs(reference, converted, details.modules, example)
        except (
            RuntimeError,
            NotImplementedError,
        ) as cause:  # integers where an operator in float needs floats
            raise BackendError(f"what torch.ao converted does not run: {first_line(cause)}") from cause
        floats = tuple(s.layer for s in pair.sites if not s.quantized and holds_weights(converted, s.layer))
        return Quantized(converted, pair, qparams_of(converted), floats, details.stays_float(floats, "fx"))

    def reference(self, prepared: Prepared, sides: Collection[Side] = BOTH) -> nn.Module:
        with quiet():
            reference: GraphModule = convert_to_reference_fx(_copy(prepared.model).eval())
            if "weights" in sides:
                finish(reference, prepared.details.schemes)
            return one_sided(reference, sides)

    def reference_of(self, prepared: Prepared, recorded: nn.Module) -> nn.Module:
        details: Assignment = prepared.details
        dynamic = [name for name, scheme in details.schemes.items() if isinstance(scheme, Dynamic)]
        if dynamic:
            raise BackendError(f"torch does not export layers in dynamic mode: {some(dynamic)}")
        assert isinstance(prepared.model, GraphModule)
        try:
            with quiet():
                reference = recorded_reference(prepared.model, recorded)
                finish(reference, details.schemes)
                take_parameters(reference, recorded)
        except BackendError:
            raise
        except Exception as cause:  # torch.ao has no reference for all that it has kernels for
            raise BackendError(f"torch.ao has no reference form of the model: {first_line(cause)}") from cause
        return reference


def _copy(model: nn.Module) -> GraphModule:
    assert isinstance(model, GraphModule)
    copied: GraphModule = copy.deepcopy(model)
    return copied


def _left_whole(model: nn.Module, recipe: Recipe, schemes: Mapping[str, AnyScheme]) -> list[str]:
    """Modules that an override leaves in float with all that is in them."""
    lineages = lineages_of(model)

    def whole(name: str) -> bool:
        named = any(override.matches(lineages[name][-1]) for override in recipe.overrides)
        inside = (s for n, s in schemes.items() if n == name or n.startswith(f"{name}."))
        return named and all(isinstance(scheme, Float) for scheme in inside)

    return [name for name in lineages if whole(name)]


def _without_weights(prepared: GraphModule, recipe: Recipe, details: Assignment) -> list[str]:
    """Nodes of modules, such as pools, that an override leaves in float among layers on integers."""
    if not isinstance(recipe.default, Static):
        return []
    modules = {n: str(n.target) for n in prepared.graph.nodes if n.op == "call_module"}
    floats = {n: name for n, name in modules.items() if isinstance(details.schemes.get(name), Float)}
    return [node.name for node, name in floats.items() if not details.modules[name].params]


def _mapping(model: nn.Module, recipe: Recipe, schemes: Mapping[str, AnyScheme]) -> QConfigMapping:
    """Layers by name, as far as they are not as the default; functions by that, but for own ranges."""
    training = recipe.training is not None
    of = _function_qconfigs(recipe)
    mapping = _function_mapping(recipe.default, training=training)
    for name, module in model.named_modules():
        if name and has_weights(module):
            qconfig = layer_qconfig(module, schemes[name], training=training)
            mapping.set_module_name(name, None if isinstance(module, RECURRENT) else qconfig)
        elif name and isinstance(schemes[name], Float):
            mapping.set_module_name(name, None)
        elif name and _observed_otherwise(module, schemes[name], recipe.default):
            mapping.set_module_name(name, of(schemes[name], type(module)))
    return mapping


def _observed_otherwise(module: nn.Module, scheme: AnyScheme, default: AnyScheme) -> bool:
    """Has a layer without weights, such as BatchNorm that is not fused, activations of its own?"""
    is_leaf = not any(True for _ in module.children())
    return is_leaf and isinstance(default, Static) and isinstance(scheme, Static) and scheme != default


def _function_qconfigs(recipe: Recipe) -> Callable[[AnyScheme, Any], Any]:
    """What observes a function in a scheme, as it would if that were the default."""

    def of(scheme: AnyScheme, function: Any) -> Any:
        mapping = _function_mapping(scheme, training=recipe.training is not None)
        return mapping.object_type_qconfigs.get(function, mapping.global_qconfig)

    return of


def _function_mapping(default: AnyScheme, *, training: bool) -> QConfigMapping:
    """torch.ao's own mapping, which knows fixed and inherited ranges, with our observers in place of its."""
    if not isinstance(default, Static):
        return QConfigMapping().set_global(None)
    ours = static_qconfig(default, training=training)
    mapping: QConfigMapping = (get_default_qat_qconfig_mapping if training else get_default_qconfig_mapping)(
        "x86"
    )
    for kind in (nn.LayerNorm, nn.functional.layer_norm):
        mapping.set_object_type(
            kind, QConfig(activation=ours.activation, weight=default_placeholder_observer)
        )
    for function in (
        nn.functional.conv_transpose1d,
        nn.functional.conv_transpose2d,
        nn.functional.conv_transpose3d,
    ):
        mapping.set_object_type(function, per_tensor_qconfig(default, training=training))
    return mapping.set_global(ours)
