"""What the observers of torch.ao and torchao share: their names, and the ranges that a recipe asks for."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from qtrack.recipe import ActivationSpec, WeightSpec

NAMES = {
    ("min_max", "per_tensor"): "MinMaxObserver",
    ("min_max", "per_channel"): "PerChannelMinMaxObserver",
    ("moving_average", "per_tensor"): "MovingAverageMinMaxObserver",
    ("moving_average", "per_channel"): "MovingAveragePerChannelMinMaxObserver",
    ("histogram", "per_tensor"): "HistogramObserver",
}
SCHEMES = {
    ("per_tensor", True): torch.per_tensor_symmetric,
    ("per_tensor", False): torch.per_tensor_affine,
    ("per_channel", True): torch.per_channel_symmetric,
    ("per_channel", False): torch.per_channel_affine,
}


def observer_class(library: ModuleType, observer: Any, granularity: str) -> Any:
    """The library's class for an observer of a recipe."""
    return getattr(library, NAMES[observer.kind, granularity])


def arguments_of(observer: Any) -> dict[str, Any]:
    """An observer's own arguments, by the names that both libraries have for them."""
    return {name: value for name, value in observer.model_dump().items() if name != "kind"}


def weight_bounds(spec: WeightSpec) -> tuple[int, int]:
    """Signed integers of that many bits."""
    half: int = 2 ** (spec.bits - 1)
    return -half, half - 1


def activation_bounds(spec: ActivationSpec) -> tuple[int, int]:
    """Unsigned integers of that many bits, one fewer where the range is reduced."""
    levels: int = 2 ** (spec.bits - spec.reduce_range)
    return 0, levels - 1
