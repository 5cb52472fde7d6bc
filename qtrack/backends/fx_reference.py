"""The reference form of a recorded model: the arithmetic of its integers, in operators that torch exports.

The kernels' packed weights do not export. What a prepared model can be converted to instead takes each
scale from an observer, and the record has those scales under the names of the lowered graph. Which observer
goes by which name is found out by converting once with a scale of its own for each of them.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FixedQParamsFakeQuantize, FixedQParamsObserver
from torch.ao.quantization.quantize_fx import _convert_to_reference_decomposed_fx, convert_fx
from torch.fx import GraphModule, Node

from qtrack.backends.base import Side
from qtrack.errors import BackendError

CONSTANT = (FixedQParamsObserver, FixedQParamsFakeQuantize)
OBSERVER = "activation_post_process_"
CONVERSIONS = (
    *(torch.quantize_per_tensor, torch.quantize_per_channel, torch.quantize_per_tensor_dynamic),
    "dequantize",
)
FULL_RANGE = (0, 255)
"""What the kernels saturate at, also where observers were told of fewer bits."""
_Qparams = tuple[Tensor, Tensor]


def recorded_reference(prepared: GraphModule, recorded: nn.Module) -> GraphModule:
    """The reference form with all scales, weights and biases of a recorded model.

    Raises BackendError where one of them has no place in the record, and could only be guessed.
    """
    qparams = _recorded_qparams(prepared, recorded.state_dict())
    told = _told(prepared, qparams)
    for name in qparams:
        observer: Any = told.get_submodule(name)
        observer.quant_min, observer.quant_max = FULL_RANGE
    reference: GraphModule = _convert_to_reference_decomposed_fx(told)
    return reference


def take_parameters(reference: nn.Module, recorded: nn.Module) -> None:
    """Put recorded weights and biases in place of those that the task's model has."""
    quantized = {name for name, module in reference.named_modules() if hasattr(module, "weight_scale")}
    state = recorded.state_dict()
    for name in quantized:
        _take(reference.get_submodule(name), _lowered(recorded, name))
    for name, value in reference.state_dict().items():
        if name.rpartition(".")[0] in quantized or not isinstance(value, Tensor):
            continue
        if name not in state or state[name].shape != value.shape:
            raise BackendError(f"the record has no {name} to build the reference form of the model with")
        value.copy_(state[name])


def one_sided(reference: GraphModule, sides: Collection[Side]) -> GraphModule:
    """A reference form with these sides on integers and the others in float; changes the model."""
    for node in list(reference.graph.nodes):
        if node.target in CONVERSIONS and _side(node) not in sides:
            node.replace_all_uses_with(node.args[0])
            reference.graph.erase_node(node)
    if "weights" not in sides:
        for module in reference.modules():
            if hasattr(module, "weight_qscheme"):
                module.weight_qscheme = None  # type: ignore[assignment]  # torch.ao's word for: leave it
    reference.recompile()
    return reference


def _side(node: Node) -> Side:
    """Weights that a function takes are converted in the graph."""
    source: Any = node
    while source.target in CONVERSIONS:
        source = source.args[0]
    return "weights" if source.op == "get_attr" else "activations"


def _recorded_qparams(prepared: GraphModule, state: Mapping[str, Any]) -> dict[str, _Qparams]:
    """Scale and zero-point of each observer, by its name."""
    names = [name for name, module in prepared.named_children() if name.startswith(OBSERVER)]
    own = {name: 1 + (i + 1) / 2**12 for i, name in enumerate(names)}  # exact in float32
    marked = {name: (torch.tensor([scale]), torch.tensor([64])) for name, scale in own.items()}
    places = _scales(convert_fx(_told(prepared, marked)).state_dict())
    found: dict[str, _Qparams] = {}
    for name in names:
        keys = [key for key, scale in places.items() if scale == own[name] and key in state]
        values = {tuple(float(state[part]) for part in (key, _zero_point(key))) for key in keys}
        if len(values) == 1:
            ((scale, zero_point),) = values
            found[name] = torch.tensor([scale]), torch.tensor([int(zero_point)])
        elif not isinstance(prepared.get_submodule(name), CONSTANT):
            raise BackendError(f"the record does not tell the scale {_where(prepared, name)}")
    return found


def _told(prepared: GraphModule, qparams: Mapping[str, _Qparams]) -> GraphModule:
    """A copy whose observers answer so, whatever they have seen."""
    told: GraphModule = copy.deepcopy(prepared).eval()
    for name, answer in qparams.items():
        told.get_submodule(name).calculate_qparams = lambda answer=answer: answer  # type: ignore[assignment]
    return told


def _scales(state: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in state.items()
        if "scale" in name and isinstance(value, Tensor) and value.numel() == 1 and not value.is_quantized
    }


def _zero_point(scale: str) -> str:
    return "zero_point".join(scale.rsplit("scale", 1))


def _where(prepared: GraphModule, observer: str) -> str:
    """``after conv1``, for people."""
    node = next(node for node in prepared.graph.nodes if node.target == observer)
    return f"after {node.args[0]}"


def _lowered(recorded: nn.Module, name: str) -> Any:
    """The kernel of a layer, which has swallowed the activation behind it."""
    for candidate in (name, name.removesuffix(".0")):
        try:
            module = recorded.get_submodule(candidate)
        except AttributeError:
            continue
        if callable(getattr(module, "weight", None)):
            return module
    raise BackendError(f"the record has no quantized {name} to build the reference form of the model with")


def _take(layer: Any, kernel: Any) -> None:
    weight, bias = kernel.weight().detach(), kernel.bias()
    per_channel = weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
    scale = weight.q_per_channel_scales() if per_channel else torch.tensor(weight.q_scale())
    zero_point = weight.q_per_channel_zero_points() if per_channel else torch.tensor(weight.q_zero_point())
    with torch.no_grad():
        layer.weight.copy_(weight.dequantize())
        layer.weight_scale.copy_(scale.reshape(layer.weight_scale.shape))
        layer.weight_zero_point.copy_(zero_point.reshape(layer.weight_zero_point.shape))
        if bias is not None:
            layer.bias.copy_(bias.detach())
