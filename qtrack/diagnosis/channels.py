"""Scales per channel: does one scale for all of a weight serve its channels?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import best_of, fine, judged, named, remedy
from qtrack.finding import Figure, Finding
from qtrack.numerics import Site, sqnr_db

CHECK = "per-channel weights"
ONE_BIT_DB = 6.0
THRESHOLD = f"{ONE_BIT_DB:.0f} dB of weight SQNR, which is one bit"


@dataclass(frozen=True)
class Layer:
    """A weight with one scale, and what a scale for each channel would make of it."""

    name: str
    spread: float
    """Largest range of a channel over the median one."""
    gain_db: float


def check(examination: Examination) -> Finding:
    """PyTorch's guide: with scales per tensor for weights, consider scales per channel."""
    layers = sorted(_per_tensor(examination), key=lambda layer: -layer.gain_db)
    if not layers:
        return fine(CHECK, "weights have scales per channel already")
    worst = layers[0]
    figures = (
        Figure("largest channel over the median", worst.spread, "times"),
        Figure("weight SQNR to gain", worst.gain_db, "dB"),
        Figure("layers that gain a bit or more", sum(layer.gain_db >= ONE_BIT_DB for layer in layers)),
    )
    if worst.gain_db < ONE_BIT_DB or not examination.suffers:
        return fine(CHECK, f"one scale serves the channels of {worst.name}", *figures, threshold=THRESHOLD)
    names = [layer.name for layer in layers if layer.gain_db >= ONE_BIT_DB]
    return judged(
        examination,
        CHECK,
        f"one scale does not serve all channels of {named(names)}",
        best_of(remedy(examination, "per_channel", why="a scale for each output channel of the weights")),
        cause="per-tensor weights",
        figures=figures,
        threshold=THRESHOLD,
        layers=names,
    )


def _per_tensor(examination: Examination) -> list[Layer]:
    """Quantized layers whose weight has one scale and several channels."""
    scales = examination.parts.quantized.qparams
    return [
        _looked_at(site)
        for site in examination.pair.sites
        if site.quantized
        and site.weight is not None
        and site.actual_weight is not None
        and len(site.weight) > 1
        and isinstance(scales.get(f"{site.layer}.weight.scale"), float)
    ]


def _looked_at(site: Site) -> Layer:
    assert site.weight is not None
    assert site.actual_weight is not None
    weight = site.weight.detach().float()
    ranges = weight.abs().flatten(1).amax(1)
    now, then = (sqnr_db(weight, other) for other in (site.actual_weight, _per_channel(weight, ranges)))
    gain = 0.0 if now is None else (then if then is not None else 120.0) - now
    return Layer(site.layer, float(ranges.max() / ranges.median().clamp(min=1e-12)), gain)


def _per_channel(weight: Tensor, ranges: Tensor) -> Tensor:
    """The weight in symmetric 8 bits with a scale for each channel."""
    scale = (ranges / 127).clamp(min=1e-12).reshape(-1, *[1] * (weight.dim() - 1))
    return torch.round(weight / scale) * scale
