"""The fx backend: torch.ao's FX graph mode.

A recipe's overrides are resolved here against the model's modules and given to torch.ao by exact name, so
that "the last match wins" holds whatever precedence torch.ao has. Functions (add, cat, ...) follow the
default scheme, or the module around them where that is left in float.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.ao.nn.intrinsic.qat import freeze_bn_stats as freeze_fused_bn
from torch.ao.quantization import (
    FakeQuantizeBase,
    QConfig,
    QConfigMapping,
    default_placeholder_observer,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx, prepare_fx, prepare_qat_fx
from torch.fx import GraphModule

from qtrack.backends.base import Prepared, Quantized, has_weights
from qtrack.backends.fx_pairing import UserModule, pair_graphs, qparams_of, user_modules
from qtrack.backends.fx_reference import recorded_reference, take_parameters
from qtrack.backends.fx_tracing import explain, untraceable
from qtrack.backends.torch_ao import dynamic_qconfig, quiet, static_qconfig
from qtrack.backends.weights import store_small
from qtrack.errors import BackendError, RecipeError
from qtrack.recipe import AnyScheme, Dynamic, Float, Float16, Module, Recipe, Static, WeightOnly
from qtrack.task import Inputs

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
LOOKUPS = (nn.Embedding, nn.EmbeddingBag)
NO_STATIC_KERNEL = (*RECURRENT, *LOOKUPS)
DYNAMIC_KERNEL = (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)


@dataclass(frozen=True, eq=False)
class _Details:
    wanted: Mapping[str, AnyScheme]
    schemes: Mapping[str, AnyScheme]
    """What each module with weights can run in."""
    modules: Mapping[str, UserModule]


class FxBackend:
    """Symbolic tracing, observers in the graph, kernels of the engine."""

    def prepare(self, model: nn.Module, recipe: Recipe, example: Inputs) -> Prepared:
        wanted = {name: recipe.scheme_for(lineage) for name, lineage in _lineages(model).items()}
        feasible = {n: _feasible(model.get_submodule(n), scheme) for n, scheme in wanted.items()}
        _refuse_named(recipe, model, wanted, feasible)
        details = _Details(wanted, feasible, user_modules(model))
        prepared = self._prepare(model, recipe, feasible, example)
        return Prepared(prepared, recipe, details)

    def _prepare(
        self, model: nn.Module, recipe: Recipe, schemes: Mapping[str, AnyScheme], example: Inputs
    ) -> GraphModule:
        opaque = untraceable(model, _left_whole(model, recipe, schemes))
        custom = PrepareCustomConfig().set_non_traceable_module_names(opaque)
        mapping = _mapping(model, recipe, schemes)
        arguments = tuple(example.values()) if isinstance(example, dict) else example
        training = recipe.training is not None
        try:
            with quiet():
                if training:
                    return prepare_qat_fx(model.train(), mapping, arguments, custom)
                return prepare_fx(model.eval(), mapping, arguments, custom)
        except Exception as cause:  # torch.fx and torch.ao raise whatever the model's code led to
            raise BackendError(explain(cause, model, opaque)) from cause

    def observe(self, prepared: Prepared, on: bool) -> None:
        for module in prepared.model.modules():
            if isinstance(module, FakeQuantizeBase):
                module.enable_observer(on)

    def fake_quantize(self, prepared: Prepared, on: bool) -> None:
        for module in prepared.model.modules():
            if isinstance(module, FakeQuantizeBase):
                module.enable_fake_quant(on)

    def freeze_bn_stats(self, prepared: Prepared) -> None:
        prepared.model.apply(freeze_fused_bn)
        for module in prepared.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def convert(self, prepared: Prepared, example: Inputs) -> Quantized:
        reference = self._float_reference(prepared)
        try:
            with quiet():
                converted = convert_fx(_copy(prepared.model).eval())
        except Exception as cause:  # kernels refuse what they cannot pack
            raise BackendError(f"torch.ao could not convert the model: {_first_line(cause)}") from cause
        details: _Details = prepared.details
        _store_small(converted, details)
        pair = pair_graphs(reference, converted, details.modules, example)
        floats = tuple(s.layer for s in pair.sites if not s.quantized and _holds_weights(converted, s.layer))
        return Quantized(converted, pair, qparams_of(converted), floats, _stays_float(floats, details))

    def reference(self, prepared: Prepared) -> nn.Module:
        with quiet():
            reference: nn.Module = convert_to_reference_fx(_copy(prepared.model).eval())
        return reference

    def reference_of(self, prepared: Prepared, recorded: nn.Module) -> nn.Module:
        details: _Details = prepared.details
        dynamic = [name for name, scheme in details.schemes.items() if isinstance(scheme, Dynamic)]
        if dynamic:
            raise BackendError(f"torch does not export layers in dynamic mode: {_some(dynamic)}")
        assert isinstance(prepared.model, GraphModule)
        try:
            with quiet():
                reference = recorded_reference(prepared.model, recorded)
                _store_small(reference, details)
                take_parameters(reference, recorded)
        except BackendError:
            raise
        except Exception as cause:  # torch.ao has no reference for all that it has kernels for
            raise BackendError(
                f"torch.ao has no reference form of the model: {_first_line(cause)}"
            ) from cause
        return reference

    def _float_reference(self, prepared: Prepared) -> GraphModule:
        """The prepared model with quantization off: fused, and float."""
        reference = _copy(prepared.model).eval()
        for module in reference.modules():
            if isinstance(module, FakeQuantizeBase):
                module.disable_fake_quant()
                module.disable_observer()
        return reference


def _store_small(model: nn.Module, details: _Details) -> None:
    for name, scheme in details.schemes.items():
        if isinstance(scheme, WeightOnly | Float16):
            store_small(_weighted(model.get_submodule(name)), scheme)


def _copy(model: nn.Module) -> GraphModule:
    assert isinstance(model, GraphModule)
    copied: GraphModule = copy.deepcopy(model)
    return copied


def _holds_weights(model: nn.Module, layer: str) -> bool:
    """Has the layer, or anything inside it, weights that could have been quantized?"""
    return any(map(has_weights, model.get_submodule(layer.partition("#")[0]).modules()))


def _lineages(model: nn.Module) -> dict[str, tuple[Module, ...]]:
    """Each module's ancestors and itself, root first."""
    types = {name: type(module).__name__ for name, module in model.named_modules()}
    return {name: tuple(Module(above, types[above]) for above in _ancestry(name)) for name in types if name}


def _ancestry(name: str) -> Iterator[str]:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


def _weighted(module: nn.Module) -> nn.Module:
    """The layer inside a module that fusion made of it and its activation."""
    return module if has_weights(module) else next(child for child in module.children() if has_weights(child))


def _feasible(module: nn.Module, scheme: AnyScheme) -> AnyScheme:
    """The scheme, or float where torch.ao has no kernel for the module in that mode."""
    if not has_weights(module):
        return scheme if isinstance(scheme, Static) else Float()
    possible = {
        "static": not isinstance(module, NO_STATIC_KERNEL),
        "dynamic": isinstance(module, DYNAMIC_KERNEL),
        "weight_only": not isinstance(module, RECURRENT),
        "float16": not isinstance(module, RECURRENT),
        "float": True,
    }
    return scheme if possible[scheme.mode] else Float()


def _refuse_named(
    recipe: Recipe, model: nn.Module, wanted: Mapping[str, AnyScheme], feasible: Mapping[str, AnyScheme]
) -> None:
    """What an override names exactly must be done, or refused in so many words."""
    for i, override in enumerate(recipe.overrides):
        name = override.layer
        if name is None or name not in wanted:
            continue
        if wanted[name].mode != feasible[name].mode and has_weights(model.get_submodule(name)):
            kind = type(model.get_submodule(name)).__name__
            raise RecipeError(
                f"recipe.overrides[{i}]: fx has no {wanted[name].mode} kernel for {name} ({kind})"
            )


def _stays_float(floats: Sequence[str], details: _Details) -> tuple[str, ...]:
    """One line for each mode that some layers were asked to run in and do not."""
    left: dict[str, list[str]] = {}
    for layer in floats:
        name = layer.partition("#")[0]
        mode = details.wanted[name].mode
        if mode != "float":
            left.setdefault(mode, []).append(f"{name} ({details.modules[name].type})")
    return tuple(
        f"{len(names)} layers stay float, fx has no {mode} kernel for them: {_some(names)}"
        for mode, names in left.items()
    )


def _some(names: list[str]) -> str:
    return ", ".join(names if len(names) <= 4 else [*names[:4], "..."])


def _left_whole(model: nn.Module, recipe: Recipe, schemes: Mapping[str, AnyScheme]) -> list[str]:
    """Modules that an override leaves in float with all that is in them."""
    lineages = _lineages(model)

    def whole(name: str) -> bool:
        named = any(override.matches(lineages[name][-1]) for override in recipe.overrides)
        inside = (s for n, s in schemes.items() if n == name or n.startswith(f"{name}."))
        return named and all(isinstance(scheme, Float) for scheme in inside)

    return [name for name in lineages if whole(name)]


def _mapping(model: nn.Module, recipe: Recipe, schemes: Mapping[str, AnyScheme]) -> QConfigMapping:
    """Layers with weights by name; functions by the default scheme, but for operators with own ranges."""
    training = recipe.training is not None
    mapping = _function_mapping(recipe.default, training=training)
    for name, module in model.named_modules():
        if name and has_weights(module):
            mapping.set_module_name(name, _qconfig(module, schemes[name], training=training))
        elif name and isinstance(schemes[name], Float):
            mapping.set_module_name(name, None)
    return mapping


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
        mapping.set_object_type(function, _per_tensor(default, training=training))
    return mapping.set_global(ours)


def _per_tensor(scheme: Static, *, training: bool) -> Any:
    """Transposed convolutions have no per-channel weights in torch.ao."""
    return static_qconfig(
        scheme.having(weight=scheme.weight.having(granularity="per_tensor")), training=training
    )


def _qconfig(module: nn.Module, scheme: AnyScheme, *, training: bool) -> Any:
    if isinstance(scheme, Static):
        as_asked = not isinstance(module, TRANSPOSED)
        return (
            static_qconfig(scheme, training=training) if as_asked else _per_tensor(scheme, training=training)
        )
    return dynamic_qconfig(scheme) if isinstance(scheme, Dynamic) else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
