"""A recipe as annotations of an exported graph, by torchao's protocol and with no choice of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization import pt2e
from torchao.quantization.pt2e import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    PlaceholderObserver,
)
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from qtrack.backends.assignment import UserModule
from qtrack.backends.aten import (
    COMPUTES,
    FIXED,
    SHARES,
    TRANSPOSED,
    Layer,
    function_of,
    is_floating,
    layers_of,
)
from qtrack.backends.moves import moves_data
from qtrack.backends.observers import SCHEMES, activation_bounds, arguments_of, observer_class, weight_bounds
from qtrack.backends.pt2e_graph import no_longer_apart
from qtrack.recipe import ActivationSpec, AnyScheme, Dynamic, Static, WeightOnly, WeightSpec

ANNOTATION = "quantization_annotation"


class RecipeQuantizer(Quantizer):  # type: ignore[misc]  # torchao is untyped
    """Annotates each layer by its scheme; what only moves values keeps the scale that they have."""

    def __init__(
        self, schemes: Mapping[str, AnyScheme], modules: Mapping[str, UserModule], *, training: bool
    ) -> None:
        self.schemes = schemes
        self.modules = modules
        self.training = training

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Called once torchao has folded BatchNorm where it found it."""
        no_longer_apart(model)
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark inputs, weights and outputs of all layers that are quantized."""
        layers = {layer.anchor: layer for layer in layers_of(model.graph, self.modules)}
        for node in model.graph.nodes:
            if node in layers:
                self._annotate(layers[node], self.schemes[layers[node].name])
            elif _only_moves(node) and not _annotation(node) and _gives_integers(node.args[0]):
                _share(node, [node.args[0]])
        return model

    def validate(self, model: GraphModule) -> None:
        """Any graph will do."""

    def _annotate(self, layer: Layer, scheme: AnyScheme) -> None:
        if isinstance(scheme, WeightOnly) and layer.weight is not None:
            _mark(layer.anchor, {layer.weight: self._weight(scheme.weight, layer)}, None)
        elif isinstance(scheme, Dynamic) and layer.weight is not None:
            weight = self._weight(scheme.weight, layer)
            _mark(layer.anchor, {layer.inputs[0]: DYNAMIC, layer.weight: weight}, None)
        elif isinstance(scheme, Static):
            self._annotate_static(layer, scheme)

    def _annotate_static(self, layer: Layer, scheme: Static) -> None:
        activation = self._activation(scheme.activation)
        inputs: dict[Node, Any] = dict.fromkeys(layer.inputs, activation)
        if layer.function in SHARES:
            _share(layer.anchor, list(layer.inputs), activation)
            return
        if layer.weight is not None:
            inputs[layer.weight] = self._weight(scheme.weight, layer)
        output = _fixed(layer.function, scheme) if layer.function in FIXED else activation
        _mark(layer.anchor, inputs, output if layer.end is layer.anchor else None)
        for node in _between(layer.anchor, layer.end):
            _mark(node, {}, output if node is layer.end else None)

    def _activation(self, spec: ActivationSpec) -> Any:
        qscheme = SCHEMES["per_tensor", spec.symmetric]
        made = self._observed(spec.observer, "per_tensor")
        return QuantizationSpec(torch.uint8, made, *activation_bounds(spec), qscheme)

    def _weight(self, spec: WeightSpec, layer: Layer) -> Any:
        channels = None if spec.granularity == "per_tensor" else int(layer.function in TRANSPOSED)
        qscheme = SCHEMES[spec.granularity, spec.symmetric]
        made = self._observed(spec.observer, spec.granularity)
        return QuantizationSpec(torch.int8, made, *weight_bounds(spec), qscheme, channels)

    def _observed(self, observer: Any, granularity: str) -> Any:
        kind, arguments = observer_class(pt2e, observer, granularity), arguments_of(observer)
        if not self.training:
            return kind.with_args(**arguments)
        wrapper = FusedMovingAvgObsFakeQuantize if observer.kind == "moving_average" else FakeQuantize
        return wrapper.with_args(observer=kind, **arguments)


DYNAMIC = QuantizationSpec(
    torch.uint8,
    PlaceholderObserver.with_args(eps=2**-12),
    0,
    255,
    torch.per_tensor_affine,
    is_dynamic=True,
)


def takes_static(layer: Layer) -> bool:
    """Can its output be quantized?"""
    known = COMPUTES | SHARES | FIXED.keys()
    return bool(layer.inputs) and (layer.function in known or layer.weight is not None)


def _only_moves(node: Node) -> bool:
    """Does it hand on the numbers of one tensor as another?"""
    return moves_data(function_of(node)) and is_floating(node)


def _annotation(node: Node) -> Any:
    return node.meta.get(ANNOTATION)


def _mark(node: Node, inputs: Mapping[Node, Any], output: Any) -> None:
    node.meta[ANNOTATION] = QuantizationAnnotation(dict(inputs), output, _annotated=True)


def _share(node: Node, inputs: list[Node], spec: Any = None) -> None:
    """One scale for all of these inputs and the output, that which the first has where none is given."""
    first, *others = inputs
    shared = SharedQuantizationSpec((first, node))
    _mark(node, {**dict.fromkeys(others, shared), first: spec or SharedQuantizationSpec(first)}, shared)


def _gives_integers(node: Any) -> bool:
    """Is its output annotated?"""
    found = _annotation(node) if isinstance(node, Node) and is_floating(node) else None
    return found is not None and found.output_qspec is not None


def _between(anchor: Node, end: Node) -> list[Node]:
    """The nodes that were fused to the anchor, the last of them ``end``."""
    found: list[Node] = []
    while anchor is not end:
        (anchor,) = anchor.users
        found.append(anchor)
    return found


def _fixed(function: str, scheme: Static) -> Any:
    """The range that a function has whatever its input."""
    scale, zero_point = FIXED[function]
    return FixedQParamsQuantizationSpec(torch.uint8, scale, zero_point, 0, 255, SCHEMES["per_tensor", False])
