"""Running sums from which every error measure follows, for any number of batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BAD_SAMPLE_DB = 10.0
"""A sample is bad for a layer where less than ten times the noise's energy is signal."""


def sqnr_db(reference: Tensor, actual: Tensor) -> float | None:
    """Signal to quantization-noise ratio in decibels; None where the two are equal."""
    sums = ErrorSums()
    sums.add(reference, actual)
    return sums.sqnr_db


def ratio_db(signal: float, noise: float) -> float | None:
    """Decibels of a ratio of energies; None without noise, and where noise meets no signal at all."""
    if not noise or not signal or not math.isfinite(noise) or not math.isfinite(signal):
        return None
    return 10 * math.log10(signal / noise)


@dataclass
class ErrorSums:
    """Energies of a reference, of what came instead, and of their difference; sums are kept in float64."""

    signal: float = 0.0
    noise: float = 0.0
    actual: float = 0.0
    product: float = 0.0
    largest: float = 0.0

    def add(self, reference: Tensor, actual: Tensor) -> Tensor:
        """Add a batch, both in float32 and of one shape; the result is their difference."""
        difference = reference - actual
        flat_reference, flat_actual, flat = reference.flatten(), actual.flatten(), difference.flatten()
        self.signal += _dot(flat_reference, flat_reference)
        self.noise += _dot(flat, flat)
        self.actual += _dot(flat_actual, flat_actual)
        self.product += _dot(flat_reference, flat_actual)
        if flat.numel():
            low, high = torch.aminmax(flat)
            self.largest = max(self.largest, -float(low), float(high))
        return difference

    @property
    def sqnr_db(self) -> float | None:
        """None where both are equal, where the signal is zero, and where either is not finite."""
        return ratio_db(self.signal, self.noise)

    @property
    def cosine(self) -> float | None:
        """None where one side is all zero."""
        scale = math.sqrt(self.signal * self.actual)
        return min(self.product / scale, 1.0) if scale and math.isfinite(scale) else None

    @property
    def nmse(self) -> float | None:
        """Energy of the error over that of the signal; None where the signal is zero."""
        ratio = self.noise / self.signal if self.signal else math.inf
        return ratio if math.isfinite(ratio) else None

    @property
    def max_abs_error(self) -> float | None:
        """In the units of the layer's output."""
        return self.largest if math.isfinite(self.largest) else None


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b))
