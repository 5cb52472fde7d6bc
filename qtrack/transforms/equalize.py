"""Cross-layer equalization: Nagel et al., Data-Free Quantization (2019, arXiv:1906.04721), section 4.1.

Between two layers each channel i can be scaled by any s_i > 0: relu(x / s) * s = relu(x). With r1 and r2 the
ranges of the weights that give and that take the channel, s = sqrt(r1 * r2) / r2 makes both sqrt(r1 * r2), so
that one scale per tensor serves all channels alike. A layer stands in two pairs where three follow each
other: the pairs are gone through again until nothing moves.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from qtrack.transforms.fold_batch_norm import fold_batch_norm
from qtrack.transforms.tracing import Adjacent, adjacent, outputs_of, parts_of

MOST_ROUNDS = 100
STILL = 1e-4
"""Largest change of a logarithm of a scale at which it is over."""


def equalize(model: nn.Module, whole: Collection[str] = ()) -> None:
    """Fold BatchNorm, then give the weights on both sides of each channel between layers the same range."""
    fold_batch_norm(model, whole)
    pairs = adjacent_pairs(model, whole)
    layers = {name: _Layer(model.get_submodule(name)) for pair in pairs for name in pair}
    for _ in range(MOST_ROUNDS):
        if all([_balance(layers[first], layers[second]) < STILL for first, second in pairs]):
            break
    for layer in layers.values():
        layer.write()


def adjacent_pairs(model: nn.Module, non_traceable: Collection[str] = ()) -> list[Adjacent]:
    """The pairs of layers that are equalized, whether BatchNorm has been folded or not."""
    return adjacent(parts_of(model, non_traceable))


class _Layer:
    """A layer's weights in double precision."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.weight: Tensor = module.weight.detach().double()
        self.bias: Tensor | None = None if module.bias is None else module.bias.detach().double()
        self.groups: int = getattr(module, "groups", 1)

    def output_ranges(self) -> Tensor:
        return self.weight.abs().flatten(1).amax(1)

    def input_ranges(self) -> Tensor:
        return self._by_input().abs().amax((1, 3)).flatten()

    def divide_outputs(self, s: Tensor) -> None:
        self.weight = self.weight / _along(s, self.weight)
        self.bias = None if self.bias is None else self.bias / s

    def multiply_inputs(self, s: Tensor) -> None:
        by_input = self._by_input()
        self.weight = (by_input * s.view(self.groups, 1, -1, 1)).view_as(self.weight)

    def _by_input(self) -> Tensor:
        """Group, output within it, input within it, place: a group's filters see its own inputs alone."""
        inputs = self.weight.shape[1]
        return self.weight.reshape(self.groups, outputs_of(self.module) // self.groups, inputs, -1)

    def write(self) -> None:
        """New parameters, so that others who share the old ones keep theirs."""
        old = self.module.weight
        self.module.weight = nn.Parameter(self.weight.to(old.dtype), requires_grad=old.requires_grad)
        if self.bias is not None:
            self.module.bias = nn.Parameter(self.bias.to(old.dtype), requires_grad=old.requires_grad)


def _along(s: Tensor, weight: Tensor) -> Tensor:
    return s.view(-1, *(1 for _ in weight.shape[1:]))


def _balance(first: _Layer, second: _Layer) -> float:
    """Equalize one pair; the result is the largest change. A channel without range on a side stays."""
    r1, r2 = first.output_ranges(), second.input_ranges()
    s = torch.where((r1 > 0) & (r2 > 0), torch.sqrt(r1 / r2), torch.ones_like(r1))
    first.divide_outputs(s)
    second.multiply_inputs(s)
    return float(s.log().abs().max())
