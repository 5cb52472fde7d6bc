"""Where two networks can be compared: the same layer, found in both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule


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

    reference: GraphModule
    actual: GraphModule
    sites: tuple[Site, ...]
    transparent: Callable[[Any], bool] = lambda module: False
    """Tells the modules (observers) that the reference passes through."""

    @property
    def output(self) -> Site:
        """The networks' outputs, as one more site."""
        last = _output(self.reference)
        return Site(-1, "", "output", "float32", 0, last, last, _output(self.actual))


def _output(graph: GraphModule) -> str:
    return str(next(node.name for node in reversed(graph.graph.nodes) if node.op == "output"))
