"""Scales per channel: does one scale for all of a weight serve its channels?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qtrack.backends.assignment import lineages_of
from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import best_of, fine, judged, named, remedy
from qtrack.finding import Figure, Finding
from qtrack.numerics import Site
from qtrack.recipe import Module, Recipe

CHECK = "per-channel weights"
ONE_BIT_DB = 6.0
TINY = 1e-12
THRESHOLD = f"{ONE_BIT_DB:.0f} dB of weight SQNR over the channels, which is one bit"


@dataclass(frozen=True)
class Layer:
    """A weight with one scale, and what a scale for each channel would make of it."""

    name: str
    spread: float
    """Largest range of a channel over the median one."""
    gain_db: float
    """Of SQNR, the mean over the channels."""


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
    scales, lineages = examination.parts.quantized.qparams, lineages_of(examination.model)
    return [
        _looked_at(site, _bits(examination.recipe, lineages.get(site.layer.partition("#")[0], ())))
        for site in examination.pair.sites
        if site.quantized
        and site.weight is not None
        and site.actual_weight is not None
        and len(site.weight) > 1
        and isinstance(scales.get(f"{site.layer}.weight.scale"), float)
    ]


def _bits(recipe: Recipe, lineage: Iterable[Module]) -> int:
    """Of a layer's weights."""
    scheme: Any = recipe.scheme_for(lineage)
    return int(scheme.weight.bits) if hasattr(scheme, "weight") else 8


def _looked_at(site: Site, bits: int) -> Layer:
    assert site.weight is not None
    assert site.actual_weight is not None
    weight = site.weight.detach().float()
    ranges = weight.abs().flatten(1).amax(1)
    now, then = (_noise(weight, other) for other in (site.actual_weight, per_channel(weight, ranges, bits)))
    gain = 10 * math.log10(now / max(then, TINY)) if now else 0.0
    return Layer(site.layer, float(ranges.max() / ranges.median().clamp(min=TINY)), gain)


def _noise(weight: Tensor, actual: Tensor) -> float:
    """Mean over the channels of noise over signal, so that a large channel does not stand for all."""
    noise, signal = ((one.flatten(1).square().sum(1)) for one in (weight - actual.float(), weight))
    return float((noise / signal.clamp(min=TINY)).clamp(max=1.0).mean())


def per_channel(weight: Tensor, ranges: Tensor, bits: int) -> Tensor:
    """The weight in symmetric integers of so many bits, a scale for each channel as torch.ao has it."""
    half: int = 2 ** (bits - 1)
    scale = (ranges / (half - 0.5)).clamp(min=TINY).reshape(-1, *[1] * (weight.dim() - 1))
    return torch.round(weight / scale).clamp(-half, half - 1) * scale
