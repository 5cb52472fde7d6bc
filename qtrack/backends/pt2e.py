"""The pt2e backend: torch.export, and torchao's prepare and convert by a quantizer that follows the recipe.

What it gives is the exported graph with integers between conversions, the form that compilers lower; run as
it is, its arithmetic is float. The batch dimension stays free.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import FakeQuantizeBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from qtrack.backends.assignment import Assignment, lineages_of, refuse_named, refuse_unmatched, user_modules
from qtrack.backends.aten import Layer, layers_of, name_after_weights
from qtrack.backends.base import BOTH, Prepared, Quantized, Side, has_weights
from qtrack.backends.export import exported
from qtrack.backends.messages import first_line, unheard
from qtrack.backends.observers import search_ranges
from qtrack.backends.pt2e_graph import (
    Exported,
    batch_norm,
    fold,
    fold_batch_norm,
    hold_scales,
    in_float,
    keep_apart,
    plain,
    rename,
)
from qtrack.backends.pt2e_pairing import pair_exports
from qtrack.backends.pt2e_quantizer import ANNOTATION, RecipeQuantizer, takes_static
from qtrack.errors import BackendError
from qtrack.recipe import AnyScheme, Call, Dynamic, Float, Recipe, Static, WeightOnly
from qtrack.task import Inputs

BATCH_NORM = torch.ops.aten.batch_norm.default


@dataclass(frozen=True, eq=False)
class _Details:
    assignment: Assignment
    """By module, for what stays in float."""
    schemes: Mapping[str, AnyScheme]
    """By layer of the exported graph, as far as it can be done."""


class Pt2eBackend:
    """Export, a quantizer of our own, conversions in the graph."""

    def prepare(self, model: nn.Module, recipe: Recipe, example: Inputs) -> Prepared:
        training = recipe.training is not None
        program = _program(copy.deepcopy(model).train(training), example)
        modules = user_modules(model)
        name_after_weights(program.graph, model)
        layers = layers_of(program.graph, modules)
        places = [place for layer in layers for place in layer.lineage]
        refuse_unmatched(recipe, [place for place in places if isinstance(place, Call)])
        wanted = {layer.name: recipe.scheme_for(layer.lineage) for layer in layers}
        schemes = {layer.name: _feasible(layer, wanted[layer.name]) for layer in layers}
        assignment = _assignment(model, recipe, schemes)
        keep_apart(program, [layer.anchor for layer in layers if isinstance(schemes[layer.name], Float)])
        quantizer = RecipeQuantizer(schemes, modules, training=training)
        try:
            with unheard():
                prepared = (prepare_qat_pt2e if training else prepare_pt2e)(program, quantizer)
        except Exception as cause:  # torchao, on graphs that it does not expect
            raise BackendError(f"torchao could not prepare the model: {first_line(cause)}") from cause
        return Prepared(Exported(prepared), recipe, _Details(assignment, schemes))

    def observe(self, prepared: Prepared, on: bool) -> None:
        for module in prepared.model.modules():
            if isinstance(module, FakeQuantizeBase):
                module.enable_observer(on)

    def fake_quantize(self, prepared: Prepared, on: bool) -> None:
        for module in prepared.model.modules():
            if isinstance(module, FakeQuantizeBase):
                module.enable_fake_quant(on)

    def freeze_bn_stats(self, prepared: Prepared) -> None:
        assert isinstance(prepared.model, Exported)
        prepared.model.frozen_bn = True
        prepared.model.train(prepared.model.training)

    def convert(self, prepared: Prepared, example: Inputs) -> Quantized:
        details: _Details = prepared.details
        search_ranges(prepared.model)
        try:
            with unheard():
                converted = self._converted(prepared)
                reference = in_float(copy.deepcopy(converted))
                fold(converted)
                torch._make_per_tensor_quantized_tensor(torch.zeros(1, dtype=torch.uint8), 1.0, 0)
                torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)  # torch warns of it once
        except Exception as cause:  # torchao, on graphs that it does not expect
            raise BackendError(f"torchao could not convert the model: {first_line(cause)}") from cause
        modules = details.assignment.modules
        layers = layers_of(converted.graph, modules)
        pair = pair_exports(
            reference, converted, layers_of(reference.graph, modules), layers, details.schemes, modules
        )
        quantized = {site.layer for site in pair.sites if site.quantized}
        left = [layer.name for layer in layers if layer.holds_weights and layer.name not in quantized]
        floats = (*(name for name in left if name.partition("#")[0] in modules), *_left_out(details, layers))
        stays = details.assignment.stays_float(floats, "pt2e")
        return Quantized(Exported(converted), pair, _qparams(converted, layers), floats, stays)

    def _converted(self, prepared: Prepared) -> GraphModule:
        """With weights still in float, and conversions behind them."""
        model = copy.deepcopy(prepared.model).eval()
        assert isinstance(model, Exported)
        for node in model.program.graph.nodes:
            node.meta.pop(ANNOTATION, None)  # a copy's annotations still speak of the original's nodes
        fold_batch_norm(model.program)
        rename(model.program, BATCH_NORM, batch_norm)  # what is left stays, with no search for patterns
        program: GraphModule = convert_pt2e(model.program, fold_quantize=False)
        rename(program, batch_norm, BATCH_NORM)
        hold_scales(program)
        return program

    def reference(self, prepared: Prepared, sides: Collection[Side] = BOTH) -> nn.Module:
        with unheard():
            program = in_float(self._converted(prepared), [side for side in BOTH if side not in sides])
            fold(program)
            return Exported(program)

    def reference_of(self, prepared: Prepared, recorded: nn.Module) -> nn.Module:
        assert isinstance(recorded, Exported)
        return plain(recorded.program)


def _program(model: nn.Module, example: Inputs) -> GraphModule:
    try:
        program: GraphModule = exported(model, example).module(check_guards=False)
    except BackendError as error:
        raise BackendError(f"{error}; backend eager takes any forward()") from error
    return program


def _feasible(layer: Layer, scheme: AnyScheme) -> AnyScheme:
    """The scheme, or float where the graph has nothing to carry it out on."""
    possible = (
        (isinstance(scheme, Static) and takes_static(layer))
        or (isinstance(scheme, Dynamic) and layer.function == "linear" and layer.weight is not None)
        or (isinstance(scheme, WeightOnly) and layer.holds_weights and layer.weight is not None)
    )
    return scheme if possible else Float()


def _assignment(model: nn.Module, recipe: Recipe, schemes: Mapping[str, AnyScheme]) -> Assignment:
    """What each module was asked to run in; raises RecipeError where one that is named cannot."""
    wanted = {name: recipe.scheme_for(lineage) for name, lineage in lineages_of(model).items()}
    feasible = {
        name: schemes.get(name, Float()) if has_weights(model.get_submodule(name)) else wanted[name]
        for name in wanted
    }
    refuse_named(recipe, model, wanted, feasible)
    return Assignment(wanted, feasible, user_modules(model))


def _left_out(details: _Details, layers: list[Layer]) -> tuple[str, ...]:
    """Modules with weights that are no layer of the exported graph, such as an LSTM."""
    known = {layer.name for layer in layers}
    return tuple(
        name
        for name, scheme in details.assignment.schemes.items()
        if name not in known
        and isinstance(scheme, Float)
        and not isinstance(details.assignment.wanted[name], Float)
    )


def _qparams(program: GraphModule, layers: list[Layer]) -> dict[str, Any]:
    """Scales and zero-points as numbers and lists: of weights by layer, of the rest as they are held."""
    found = {
        name: value.tolist()
        for name, value in program.named_buffers()
        if "scale" in name or "zero_point" in name
    }
    weights: dict[str, Any] = {}
    held = set[str]()
    for layer in layers:
        if layer.weight is None or layer.weight.op == "get_attr":
            continue
        for key, argument in zip(("scale", "zero_point"), layer.weight.args[1:3], strict=True):
            held.add(name := str(argument.target))  # type: ignore[union-attr]
            weights[f"{layer.name.partition('#')[0]}.weight.{key}"] = found[name]
    return {name: value for name, value in found.items() if name not in held} | weights
