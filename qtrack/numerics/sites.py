"""Where two networks can be compared: the same layer, found in both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from qtrack.numerics.steps import OUTPUT, Runner


@dataclass(frozen=True, eq=False)
class Site:
    """One layer, as it stands in the reference and in the quantized graph."""

    index: int
    layer: str
    type: str
    dtype: str
    params: int
    start: str
    """The reference's node that takes the layer's inputs."""
    end: str
    """The reference's node that gives its output, after what was fused into it."""
    actual: str
    """The quantized graph's node."""
    weight: Tensor | None = None
    """Float, BatchNorm folded in; None for functions."""
    actual_weight: Tensor | None = None
    """Dequantized."""

    @property
    def quantized(self) -> bool:
        return self.dtype != "float32"


@dataclass(frozen=True, eq=False)
class Pair:
    """A fused float network, the quantized one, and the sites that they share, in execution order."""

    reference: Runner
    actual: Runner
    sites: tuple[Site, ...]
    moves: Mapping[str, str] = field(default_factory=dict)
    """Layers that move or cut off integers, which are no sites: the quantized graph's node, by name."""
    moving: tuple[Site, ...] = ()
    """The same with their place in the reference, where both are graphs."""


OUTPUTS = Site(-1, "", "output", "float32", 0, OUTPUT, OUTPUT, OUTPUT)
"""The networks' own outputs, as one more site."""
