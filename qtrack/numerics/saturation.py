"""How often a kernel that adds pairs of products in 16 bits would overflow.

fbgemm without VNNI multiplies unsigned activations by signed weights and adds two products at a time with
saturation to 16 bits (the instruction vpmaddubsw): 2 * 255 * 127 is almost twice what they hold. Giving up
one bit of the activations (``reduce_range``) rules that out.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 2**15 - 1
PAIRS = 1 << 22
"""Pairs of products that are looked at."""


def saturating_pairs(layer: nn.Module, activations: Tensor, weight: Tensor) -> float | None:
    """Share of the pairs that overflow; None for a layer that is neither Linear nor Conv2d.

    ``activations`` and ``weight`` are integers as the kernel has them; products that stand side by side in
    memory are paired, channels last.
    """
    met = seen = 0
    for rows, columns in _products(layer, activations.float(), weight.float()):
        width = rows.shape[1] + rows.shape[1] % 2
        rows, columns = (F.pad(one, (0, width - one.shape[1])) for one in (rows, columns))
        some = rows[:: max(len(rows) * len(columns) * width // 2 // PAIRS, 1)]
        sums = (some.unsqueeze(1) * columns).unflatten(2, (-1, 2)).sum(3)
        met += int((sums.abs() > LARGEST).sum())
        seen += sums.numel()
    return met / seen if seen else None


def _products(layer: nn.Module, activations: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What is multiplied: rows of activations and of weights, for each group of channels."""
    if isinstance(layer, nn.Linear):
        yield activations.flatten(0, -2), weight
    elif isinstance(layer, nn.Conv2d):
        rows = F.unfold(
            activations[:1], layer.kernel_size, layer.dilation, _padding(layer), layer.stride
        )  # channels, then positions of the filter
        taps = weight[0, 0].numel()
        rows = rows[0].unflatten(0, (layer.in_channels, taps)).permute(2, 1, 0)
        for group, (part, filters) in enumerate(
            zip(rows.chunk(layer.groups, 2), weight.chunk(layer.groups), strict=True)
        ):
            if group < 64:
                yield part.flatten(1), filters.flatten(2).transpose(1, 2).flatten(1)


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(layer.padding, str)
    high, wide = layer.padding
    return high, wide
