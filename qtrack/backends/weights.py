"""Weights stored small and computed with in float32: the weight-only and float16 modes.

The stored tensor stands in the module's ``state_dict`` under ``parametrizations.weight.original``; the float
weight is made anew at each call. It works for every module that has a ``weight``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qtrack.backends.base import has_weights
from qtrack.recipe import Float16, WeightOnly

WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Of a layer, and of MultiheadAttention beside those of its output layer."""


class Dequantize(nn.Module):
    """Integers to float32, with a scale and zero-point per tensor or per output channel."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self, stored: Tensor) -> Tensor:
        return (stored.float() - self.zero_point) * self.scale


class Widen(nn.Module):
    """float16 to float32."""

    def forward(self, stored: Tensor) -> Tensor:
        return stored.float()


def store_small(module: nn.Module, scheme: WeightOnly | Float16) -> None:
    """Replace the module's weights by their stored form."""
    for name in WEIGHTS:
        weight = getattr(module, name, None)
        if isinstance(weight, Tensor):
            _store_small(module, name, weight.detach(), scheme)


def _store_small(module: nn.Module, name: str, weight: Tensor, scheme: WeightOnly | Float16) -> None:
    stored, restore = _as_integers(weight, scheme) if isinstance(scheme, WeightOnly) else _as_half(weight)
    setattr(module, name, nn.Parameter(stored, requires_grad=False))
    parametrize.register_parametrization(module, name, restore, unsafe=True)


def weighted(module: nn.Module) -> nn.Module:
    """The layer inside a module that fusion made of it and its activation."""
    is_layer = has_weights(module) or isinstance(module, nn.MultiheadAttention)
    return module if is_layer else next(child for child in module.children() if has_weights(child))


def _as_half(weight: Tensor) -> tuple[Tensor, nn.Module]:
    return weight.detach().half(), Widen()


def _as_integers(weight: Tensor, scheme: WeightOnly) -> tuple[Tensor, nn.Module]:
    from qtrack.backends.engines import quiet
    from qtrack.backends.torch_ao import weight_observer

    observer = weight_observer(scheme.weight)
    with quiet():
        observer(weight)
        scale, zero_point = observer.calculate_qparams()
    shape = (-1, *[1] * (weight.dim() - 1)) if scale.numel() > 1 else ()
    scale, zero_point = scale.float().reshape(shape), zero_point.float().reshape(shape)
    integers = torch.round(weight / scale) + zero_point
    return integers.clamp(observer.quant_min, observer.quant_max).to(torch.int8), Dequantize(
        scale, zero_point
    )
