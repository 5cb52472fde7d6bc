"""Weights stored small and computed with in float32: the weight-only and float16 modes.

The stored tensor stands in the module's ``state_dict`` under ``parametrizations.weight.original``; the float
weight is made anew at each call. It works for every module that has a ``weight``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qtrack.backends.base import has_weights
from qtrack.backends.torch_ao import quiet, weight_observer
from qtrack.recipe import AnyScheme, Float16, WeightOnly


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
    """Replace the module's weight by its stored form."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    stored, restore = (
        _as_integers(weight.detach(), scheme) if isinstance(scheme, WeightOnly) else _as_half(weight)
    )
    module.weight = nn.Parameter(stored, requires_grad=False)
    parametrize.register_parametrization(module, "weight", restore, unsafe=True)


def store_all_small(model: nn.Module, schemes: Mapping[str, AnyScheme]) -> None:
    """The same for every module of a model whose scheme says so, fused or not."""
    for name, scheme in schemes.items():
        if isinstance(scheme, WeightOnly | Float16):
            store_small(weighted(model.get_submodule(name)), scheme)


def weighted(module: nn.Module) -> nn.Module:
    """The layer inside a module that fusion made of it and its activation."""
    return module if has_weights(module) else next(child for child in module.children() if has_weights(child))


def _as_half(weight: Tensor) -> tuple[Tensor, nn.Module]:
    return weight.detach().half(), Widen()


def _as_integers(weight: Tensor, scheme: WeightOnly) -> tuple[Tensor, nn.Module]:
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
