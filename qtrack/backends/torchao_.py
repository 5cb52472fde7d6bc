"""The torchao backend: torchao's ``quantize_`` on Linear layers and, for weights alone, on embeddings.

It packs weights and needs no observers: calibration changes nothing. Which layer gets what is settled by
qtrack's own rules, and torchao is given one layer at a time, because it skips in silence what it cannot pack.
IntX keeps weights of fewer than eight bits in a byte each, so they are coarser but not smaller.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from qtrack.backends.assignment import Assignment, assign, some
from qtrack.backends.base import BOTH, Prepared, Quantized, Side, has_weights
from qtrack.backends.eager_pairing import pair_modules
from qtrack.backends.layer_weights import is_packed, stored_as
from qtrack.backends.messages import first_line
from qtrack.backends.torchao_configs import configs_of
from qtrack.backends.torchao_door import torchao
from qtrack.backends.torchao_json import WEIGHTS_ALONE
from qtrack.backends.torchao_state import keep_plain, parts_of
from qtrack.errors import BackendError, RecipeError
from qtrack.numerics import Pair
from qtrack.recipe import AnyScheme, Float, Recipe, Torchao, WeightOnly
from qtrack.task import Inputs

SHOWN = ("scale", "zero_point")


@dataclass(frozen=True, eq=False)
class _Details:
    assignment: Assignment
    configs: Mapping[AnyScheme, Any]


class TorchaoBackend:
    """Packed weights, arithmetic in float or with activations measured as they pass."""

    def __init__(self) -> None:
        torchao()

    def prepare(self, model: nn.Module, recipe: Recipe, example: Inputs) -> Prepared:
        configs = configs_of(recipe)
        assignment = assign(model, recipe, has_kernel=has_kernel)
        _refuse_uneven(model, assignment)
        own = copy.deepcopy(model).eval()
        _try(own, example)
        return Prepared(own, recipe, _Details(assignment, configs))

    def observe(self, prepared: Prepared, on: bool) -> None:
        """There are no observers."""

    def fake_quantize(self, prepared: Prepared, on: bool) -> None:
        """There is no fake quantization."""

    def freeze_bn_stats(self, prepared: Prepared) -> None:
        """They never move: there is no training."""

    def convert(self, prepared: Prepared, example: Inputs) -> Quantized:
        details: _Details = prepared.details
        converted = _packed(prepared)
        pair = _paired(prepared, converted, example)
        floats = tuple(s.layer for s in pair.sites if _stays_float(converted, s.actual))
        qparams = {k: v for name, m in converted.named_modules() for k, v in _qparams(name, m)}
        return Quantized(converted, pair, qparams, floats, details.assignment.stays_float(floats, "torchao"))

    def reference(self, prepared: Prepared, sides: Collection[Side] = BOTH) -> nn.Module:
        if "weights" not in sides:
            raise BackendError("torchao measures activations inside of its kernels: they have no form alone")
        packed = _packed(prepared)
        return self.reference_of(prepared, packed) if "activations" in sides else _in_float(packed)

    def reference_of(self, prepared: Prepared, recorded: nn.Module) -> nn.Module:
        """Integers times scales as float weights: a file with torchao's tensors would need torchao."""
        packed = {name: m for name, m in recorded.named_modules() if is_packed(getattr(m, "weight", None))}
        dynamic = [name for name, m in packed.items() if str(stored_as(m)).endswith("dynamic")]
        if dynamic:
            raise BackendError(f"layers in dynamic mode have no reference form: {some(dynamic)}")
        return _in_float(recorded)


def _in_float(packed: nn.Module) -> nn.Module:
    """A copy whose weights are integers times scales, as floats."""
    model = copy.deepcopy(packed).eval()
    for layer in model.modules():
        if is_packed(getattr(layer, "weight", None)):
            layer.weight = nn.Parameter(_weight(layer).dequantize(), requires_grad=False)
    return model


def _paired(prepared: Prepared, converted: nn.Module, example: Inputs) -> Pair:
    """Attention counts as one layer; raises BackendError where the model does not run."""
    whole = [name for name, m in converted.named_modules() if isinstance(m, nn.MultiheadAttention)]
    modules = prepared.details.assignment.modules
    try:
        reference = copy.deepcopy(prepared.model).eval()
        return pair_modules(reference, converted, example, modules=modules, closed=whole)
    except Exception as cause:  # kernels refuse what they cannot run, and so does the model's own code
        raise BackendError(f"the model does not run on torchao's weights: {first_line(cause)}") from cause


def _packed(prepared: Prepared) -> nn.Module:
    """A copy of the model with torchao's weights."""
    details: _Details = prepared.details
    model = copy.deepcopy(prepared.model).eval()
    for name, scheme in details.assignment.schemes.items():
        if scheme != Float():
            _pack(model.get_submodule(name), name, details.configs[scheme])
    return model


def has_kernel(module: nn.Module, scheme: AnyScheme) -> bool:
    """Linear layers in all modes; embeddings where the arithmetic stays in float.

    The one Linear inside of MultiheadAttention is left alone, because torch reads its weight past torchao.
    """
    if isinstance(module, nn.Embedding):
        alone = isinstance(scheme, Torchao) and scheme.config.get("_type") in WEIGHTS_ALONE
        return alone or isinstance(scheme, WeightOnly)
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def _try(model: nn.Module, example: Inputs) -> None:
    """Raise BackendError where the float model does not run, so that torchao is not blamed for it."""
    try:
        with torch.no_grad():
            model(**example) if isinstance(example, dict) else model(*example)
    except Exception as cause:  # whatever the model's code raises
        raise BackendError(f"the float model refuses its example: {first_line(cause)}") from cause


def _refuse_uneven(model: nn.Module, assignment: Assignment) -> None:
    """Raise RecipeError for each layer whose inputs do not come out even in groups."""
    faults = []
    for name, scheme in assignment.schemes.items():
        size = scheme.weight.group_size if isinstance(scheme, WeightOnly) else None
        inputs = _weight(model.get_submodule(name)).shape[-1] if size else 0
        if size and inputs % size:
            faults.append(
                f"recipe: groups of {size} do not divide the {inputs} inputs of {name} "
                f"({assignment.modules[name].type}): choose another group_size, or leave that layer in float"
            )
    if faults:
        raise RecipeError(faults)


def _pack(layer: nn.Module, name: str, config: Any) -> None:
    """Replace a layer's weight by torchao's; raises BackendError where that is not done."""
    asked = f"{type(config).__name__} on {name} ({type(layer).__name__})"
    try:
        torchao().quantize_(layer, config, filter_fn=lambda module, _: module is layer)
    except Exception as cause:  # a missing package is an ImportError, a missing device an AssertionError
        raise BackendError(f"torchao cannot carry out {asked}: {first_line(cause)}") from cause
    if not is_packed(_weight(layer)):
        raise BackendError(f"torchao skips {asked}: a weight of {list(_weight(layer).shape)} does not fit it")
    layer.__dict__.pop("extra_repr", None)  # torchao's holds on to the layer that it was made of
    keep_plain(layer)


def _weight(layer: nn.Module) -> Any:
    return layer.weight


def _qparams(name: str, layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """One scale per channel, or in a list per channel one for each group."""
    weight = getattr(layer, "weight", None)
    for part, tensor in parts_of(weight).items() if is_packed(weight) else ():
        if part in SHOWN:
            yield f"{name}.weight.{part}", tensor.squeeze(-1).tolist()


def _stays_float(model: nn.Module, node: str) -> bool:
    """Has the layer weights, and are they as they were (in whatever type of float)?"""
    layer = model.get_submodule(node.partition("#")[0])
    return stored_as(layer) is None and any(map(has_weights, layer.modules()))
