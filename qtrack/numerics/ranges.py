"""What each kind of observer would make of a layer's values: estimated, without running the network again.

Rounding leaves step^2 / 12, or x^2 where |x| is less than half a step; what is cut off leaves the square
of the distance to it. **Each sample counts alike**: its noise is taken over its own energy. A sum over all
samples would be that of the one with a huge value, which no other has anything of, and which a range that
serves the others has to cut off.

Values are known by the buckets of a sketch. Of a sample that was not looked at as a whole, the extremes count
as one element each. On Gaussian, rectified and heavy-tailed values, with and without outliers, the estimates
are within 1.5 dB of what torch.ao's observers come to (``tests/test_ranges.py``); where a small part of each
sample is looked at, tails are known less well, and so is what cutting them off brings: within some 2 dB.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qtrack.numerics.sketch import BUCKETS, ELEMENTS, FINITE, NEGATIVE, buckets_of, magnitudes
from qtrack.numerics.sums import Reference, ratio_db
from qtrack.recipe import ActivationSpec, Histogram, Percentile

Floats = NDArray[np.float64]
PIECES = (np.arange(4) + 0.5) / 4
"""Where in a bucket its elements are taken to be."""
TAILS = np.concatenate([[0.0], 1e-6 * 1.5 ** np.arange(33)])
"""Shares of all elements that the search for the least error tries to do without, on either side."""
SEARCHED_LEVELS = 256
"""That search is for eight bits, whatever the recipe's: it is torch's own."""


class Estimates(NamedTuple):
    """SQNR in decibels of quantizing a layer's output, by the observer; None where it is not known."""

    min_max_db: float | None = None
    percentile_db: float | None = None
    histogram_db: float | None = None


class Spread:
    """How many elements of a layer's output lie in each bucket, and what they count for."""

    def __init__(self) -> None:
        self.counts: Floats = np.zeros(BUCKETS)
        self.weights: Floats = np.zeros(BUCKETS)
        """Each element by one over the energy of its sample."""
        self.samples = 0

    def add(self, reference: Reference) -> None:
        """Add a batch that has met something; samples that are all zero or not finite say nothing."""
        good = np.isfinite(reference.energy) & (reference.energy > 0)
        size = reference.rows.shape[1]
        seen = min(max(ELEMENTS // max(len(good), 1), 1), size)
        weight = 1 / reference.energy[good]
        self.samples += len(weight)
        self._count(buckets_of(reference.rows[:, :seen])[good], 1.0, weight * size / seen)
        if seen < size:
            ends = np.stack([reference.low, reference.high], 1)[good].astype(np.float32)
            self._count(buckets_of(ends), seen / size, weight)

    def _count(self, buckets: NDArray[np.int32], count: float, weight: Floats) -> None:
        """A row for each sample."""
        flat = buckets.ravel()
        self.counts += count * np.bincount(flat, minlength=BUCKETS)
        weights = np.repeat(weight, buckets.shape[1])
        self.weights += np.bincount(flat, weights, minlength=BUCKETS)

    def estimates(self, low: float, high: float, spec: ActivationSpec) -> Estimates:
        """Where these are all values' extremes, with the bits and the symmetry of the specification."""
        if not (np.isfinite(low) and np.isfinite(high) and high > low and self.samples):
            return Estimates()
        filled = np.flatnonzero(self.counts)
        x = np.clip(_places()[filled], low, high).ravel()
        order = np.argsort(x)
        plain, weighted = (
            _Values(x[order], np.repeat(part[filled] / len(PIECES), len(PIECES))[order])
            for part in (self.counts, self.weights)
        )
        ranges = (low, high), _percentile(plain, low, high), _least_error(plain, low, high)
        return Estimates(*(ratio_db(self.samples, weighted.noise_in(*found, spec)) for found in ranges))


class _Values:
    """Elements, in order, and how much of each there is."""

    def __init__(self, x: Floats, number: Floats) -> None:
        self.x, self.number = x, number
        order = np.argsort(np.abs(x))
        self.sizes = np.abs(x)[order]
        self.up_to = np.concatenate([[0], np.cumsum(number[order])])
        self.energy_up_to = np.concatenate([[0], np.cumsum((number * x**2)[order])])

    def noise(self, lows: Floats, highs: Floats, levels: int, *, searched: bool = False) -> Floats:
        """Energy of the error in each range, by low and high limit.

        Zero has no error, but in torch's search for the least one, which puts values in the middle of steps
        that begin at the low limit.
        """
        below, above = lows[:, None] - self.x, self.x - highs[:, None]
        cut = ((np.maximum(below, 0) ** 2) @ self.number)[:, None] + (np.maximum(above, 0) ** 2) @ self.number
        lost = ((below > 0) @ self.number)[:, None] + (above > 0) @ self.number
        step = np.maximum(highs - lows[:, None], np.finfo(float).tiny) / (levels - 1)
        small = np.searchsorted(self.sizes, step / 2)
        rounded = np.maximum(self.up_to[-1] - lost - self.up_to[small], 0)
        found: Floats = cut + rounded * step**2 / 12 + self.energy_up_to[small]
        return found + self.up_to[small] * ((-lows[:, None] / step) % 1 - 0.5) ** 2 * step**2 * searched

    def noise_in(self, low: float, high: float, spec: ActivationSpec) -> float:
        """In one range, with zero in it, as the specification has it."""
        low, high = min(low, 0.0), max(high, 0.0)
        if spec.symmetric:
            low, high = -max(-low, high), max(-low, high)
        levels = 2 ** (spec.bits - spec.reduce_range)
        return float(self.noise(np.array([low]), np.array([high]), levels)[0, 0])


@cache
def _places() -> Floats:
    """The values that a bucket stands for."""
    edges = magnitudes().astype(np.float64)
    inside = edges[:-1, None] + np.diff(edges)[:, None] * PIECES
    found = np.zeros((BUCKETS, len(PIECES)))
    found[:FINITE], found[NEGATIVE : NEGATIVE + FINITE] = inside, -inside
    return found


def _percentile(values: _Values, low: float, high: float) -> tuple[float, float]:
    """By the default quantile."""
    spec = Percentile()
    lows, highs = _limits(values, low, high, np.array([(1 - spec.quantile) / 2]), spec.bins)
    return float(lows[0]), float(highs[0])


def _least_error(values: _Values, low: float, high: float) -> tuple[float, float]:
    """Of many limits; a sum over all elements, as the observer has it."""
    lows, highs = _limits(values, low, high, TAILS, Histogram().bins)
    noise = values.noise(np.minimum(lows, 0), np.maximum(highs, 0), SEARCHED_LEVELS, searched=True)
    row, column = np.unravel_index(np.argmin(noise), noise.shape)
    return float(lows[row]), float(highs[column])


def _limits(values: _Values, low: float, high: float, tails: Floats, bins: int) -> tuple[Floats, Floats]:
    """Where such shares of all elements lie outside, on either side; whole bins of a histogram."""
    share, width = np.cumsum(values.number) / values.up_to[-1], (high - low) / bins
    last = len(share) - 1
    first = values.x[np.minimum(np.searchsorted(share, tails, side="right"), last)]
    final = values.x[np.minimum(np.searchsorted(share, 1 - tails), last)]
    return low + np.floor((first - low) / width) * width, high - np.floor((high - final) / width) * width
