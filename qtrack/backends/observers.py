"""What the observers of torch.ao and torchao share: their names, and the ranges that a recipe asks for.

Neither has a percentile: it is their own observer of histograms with another way to choose the range.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from qtrack.recipe import ActivationSpec, WeightSpec

NAMES = {
    ("min_max", "per_tensor"): "MinMaxObserver",
    ("min_max", "per_channel"): "PerChannelMinMaxObserver",
    ("moving_average", "per_tensor"): "MovingAverageMinMaxObserver",
    ("moving_average", "per_channel"): "MovingAveragePerChannelMinMaxObserver",
    ("histogram", "per_tensor"): "HistogramObserver",
    ("percentile", "per_tensor"): "HistogramObserver",
}
ROUNDING = 1e-12
SCHEMES = {
    ("per_tensor", True): torch.per_tensor_symmetric,
    ("per_tensor", False): torch.per_tensor_affine,
    ("per_channel", True): torch.per_channel_symmetric,
    ("per_channel", False): torch.per_channel_affine,
}


def observer_class(library: ModuleType, observer: Any, granularity: str) -> Any:
    """The library's class for an observer of a recipe."""
    found = getattr(library, NAMES[observer.kind, granularity])
    own = {"percentile": percentile_class, "histogram": remembering_class}.get(observer.kind)
    return own(found) if own else found


@cache
def percentile_class(histogram: Any) -> Any:
    """A library's observer of histograms that cuts off tails."""
    return type("PercentileObserver", (_CutsTails, histogram), {})


@cache
def remembering_class(histogram: Any) -> Any:
    """A library's observer of histograms that searches once for the same histogram."""
    return type("RememberingObserver", (Remembers, histogram), {})


class Remembers:
    """The search for the least squared error takes half the time of a conversion: its answer is kept."""

    histogram: Tensor
    min_val: Tensor
    max_val: Tensor
    found: tuple[Tensor, Tensor, Tensor, Any] | None = None
    """What was searched, and the answer."""

    def _non_linear_param_search(self) -> Any:
        seen = self.histogram, self.min_val, self.max_val
        if self.found is None or not all(map(_same, seen, self.found[:3])):
            answer = super()._non_linear_param_search()  # type: ignore[misc]  # the library's own
            self.found = (*(one.clone() for one in seen), answer)
        assert self.found is not None
        return self.found[3]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and torch.equal(one, other)


def search_ranges(model: nn.Module) -> None:
    """Let every observer that has seen something find its range now, so that copies know it."""
    for module in model.modules():
        if isinstance(module, Remembers) and bool(module.min_val <= module.max_val):
            module._non_linear_param_search()


class _CutsTails:
    """In place of a search for the least squared error; whole bins stay or go."""

    histogram: Tensor
    min_val: Tensor
    max_val: Tensor
    bins: int

    def __init__(self, quantile: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.quantile = quantile

    def _non_linear_param_search(self) -> tuple[Tensor, Tensor]:
        share = self.histogram.double().cumsum(0) / self.histogram.double().sum()
        tail = (1 - self.quantile) / 2
        first = int((share <= tail).sum())
        last = int((share < 1 - tail - ROUNDING).sum())
        width = (self.max_val - self.min_val) / self.bins
        return self.min_val + width * min(first, last), self.min_val + width * (last + 1)


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
