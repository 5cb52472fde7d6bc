"""Distributions of a few layers, float beside quantized, for looking at."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtrack.numerics.compare import tensors_in
from qtrack.numerics.lockstep import Lockstep
from qtrack.numerics.sites import Pair, Site
from qtrack.numerics.steps import Inputs
from qtrack.outcome import Bars, LayerHistograms

BINS = 120


def histograms(pair: Pair, inputs: Inputs, layers: Collection[str]) -> dict[str, LayerHistograms]:
    """Weights, and output activations on one batch, of the named layers."""
    sites = tuple(site for site in pair.sites if site.layer in layers)
    narrowed = Pair(pair.reference, pair.actual, sites)
    found = {}
    with torch.inference_mode():
        for _, site, _, end, actual in Lockstep([narrowed]).run(inputs):
            if site.layer:
                activation = _bars(tensors_in(end.output)[0], tensors_in(actual.output)[0])
                found[site.layer] = LayerHistograms(_weights(site), activation)
    return found


def _weights(site: Site) -> tuple[Bars, Bars] | None:
    if site.weight is None or site.actual_weight is None:
        return None
    return _bars(site.weight.detach(), site.actual_weight.detach())


def _bars(reference: Tensor, actual: Tensor) -> tuple[Bars, Bars]:
    """Both over the bins that span them together."""
    one, other = (
        (tensor.dequantize() if tensor.is_quantized else tensor).float().flatten().numpy()
        for tensor in (reference, actual)
    )
    both = np.concatenate([one, other])
    both = both[np.isfinite(both)]
    edges = np.linspace(
        both.min(initial=0.0), max(both.max(initial=0.0), both.min(initial=0.0) + 1e-12), BINS + 1
    )
    return _counted(one, edges), _counted(other, edges)


def _counted(values: NDArray[np.float32], edges: NDArray[np.float64]) -> Bars:
    return Bars(np.histogram(values[np.isfinite(values)], edges)[0].astype(float), edges)
