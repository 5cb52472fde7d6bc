"""Running sums from which every error measure follows, for any number of batches.

Tensors are read in blocks small enough for the processor's cache, each block once for all measures: reading
a large activation from memory costs as much as the arithmetic on it. Within a block sums are float32, between
blocks float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 17
"""Elements of a block: half a megabyte of float32."""
PLACE = 16
"""Elements read in one place where a tensor is sampled: a line of the cache."""
BAD_SAMPLE_DB = 10.0
"""A sample's error is large where its SQNR is below this: the noise has a tenth of the signal's energy."""

Values = NDArray[np.float64]


def sqnr_db(reference: Tensor, actual: Tensor) -> float | None:
    """Signal to quantization-noise ratio in decibels; None where the two are equal."""
    sums = ErrorSums()
    sums.add(Reference(reference), actual)
    return sums.sqnr_db


def ratio_db(signal: float, noise: float) -> float | None:
    """Decibels of a ratio of energies; None without noise, and where noise meets no signal at all."""
    if not noise or not signal or not math.isfinite(noise) or not math.isfinite(signal):
        return None
    return 10 * math.log10(signal / noise)


class Reference:
    """A reference tensor, sample by sample; what is known of it alone is found once for all that meet it."""

    energy: Values
    """By sample; like the ranges, known once it has met something or ``learn`` was called."""
    low: Values
    high: Values

    def __init__(self, tensor: Tensor, *, sample: int | None = None) -> None:
        """With ``sample``, so many elements of each row are looked at, evenly spread over it."""
        self.layout = _Layout(tensor, sample)
        self.rows = self.layout.rows(tensor.float())
        self.known = False

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each block: several whole rows, or a part of one."""
        columns = self.rows.shape[1]
        width = max(min(columns, BLOCK), 1)
        height = max(BLOCK // width, 1)
        for top in range(0, len(self.rows), height):
            for left in range(0, columns, width):
                yield slice(top, top + height), slice(left, left + width)

    def learn(self) -> None:
        """Find each sample's energy and range."""
        if not self.known:
            seen = _Seen()
            for rows, columns in self.blocks():
                seen.add(self.rows[rows, columns])
            self._know(seen)

    def _know(self, seen: _Seen) -> None:
        samples = len(self.rows)
        self.energy = _by_sample(seen.energies, samples).sum(1)
        self.low = _by_sample(seen.lows, samples).min(1, initial=math.inf)
        self.high = _by_sample(seen.highs, samples).max(1, initial=-math.inf)
        self.known = True

    def meet(self, actual: Tensor, representable: tuple[float, float] | None = None) -> Meeting:
        """Energies of what came instead and of its error, sample by sample; what lay outside is counted."""
        rows = self.layout.rows(actual.to(self.rows.device))
        seen, found = _Seen(), _Found()
        for top, left in self.blocks():
            reference, other = self.rows[top, left], rows[top, left]
            if not self.known:  # now, while the block is in the cache
                seen.add(reference)
            found.add(reference, other)
            if representable and self._reaches_beyond(representable, top, seen):
                found.outside += _outside(reference, representable)
        if not self.known:
            self._know(seen)
        return found.meeting(len(self.rows), self.rows.numel())

    def _reaches_beyond(self, representable: tuple[float, float], rows: slice, seen: _Seen) -> bool:
        """Most blocks do not, and need no counting."""
        low = self.low[rows].min() if self.known else seen.lows[-1].min()
        high = self.high[rows].max() if self.known else seen.highs[-1].max()
        return bool(low < representable[0] or high > representable[1])


class Meeting(NamedTuple):
    """A reference and what came instead, on one batch."""

    noise: Values
    """Energy of the error, by sample."""
    actual: Values
    """Energy of what came, by sample."""
    largest: float
    """Largest error."""
    clipped: int
    elements: int


class _Seen:
    """What the blocks of one tensor gave, row by row."""

    def __init__(self) -> None:
        self.energies: list[Values] = []
        self.lows: list[Values] = []
        self.highs: list[Values] = []

    def add(self, block: Tensor) -> None:
        self.energies.append(_energies(block))
        low, high = _extremes(block)
        self.lows.append(low)
        self.highs.append(high)


class _Found:
    """The same for two tensors that met."""

    def __init__(self) -> None:
        self.noise: list[Values] = []
        self.actual: list[Values] = []
        self.largest = 0.0
        self.outside = 0

    def add(self, reference: Tensor, actual: Tensor) -> None:
        plain = actual.dequantize() if actual.is_quantized else actual.float()
        self.actual.append(_energies(plain))
        error = torch.sub(reference, plain, out=plain if actual.is_quantized else None)
        self.noise.append(_energies(error))
        low, high = _extremes(error)
        self.largest = max(self.largest, -float(low.min(initial=0.0)), float(high.max(initial=0.0)))

    def meeting(self, samples: int, elements: int) -> Meeting:
        noise, actual = (_by_sample(parts, samples).sum(1) for parts in (self.noise, self.actual))
        return Meeting(noise, actual, self.largest, self.outside, elements)


def _energies(block: Tensor) -> Values:
    """Sum of squares of each row."""
    if len(block) == 1:
        return np.array([float(torch.dot(block[0], block[0]))])  # half as long as the norm
    norms: Values = torch.linalg.vector_norm(block, dim=1).double().cpu().numpy()
    return norms * norms


def _extremes(block: Tensor) -> tuple[Values, Values]:
    """Smallest and largest element of each row; NaN where it holds one."""
    if not block.shape[1]:
        return np.full(len(block), math.inf), np.full(len(block), -math.inf)
    if block.device.type == "cpu":
        elements = block.numpy()  # numpy takes two thirds of torch's time
        return elements.min(1), elements.max(1)
    return block.amin(1).cpu().numpy(), block.amax(1).cpu().numpy()


def _by_sample(parts: list[Values], samples: int) -> Values:
    """A row for each sample out of what its blocks gave in order."""
    return np.concatenate(parts).astype(np.float64).reshape(samples, -1) if parts else np.zeros((samples, 0))


def _outside(block: Tensor, representable: tuple[float, float]) -> int:
    """Elements that a range cuts off."""
    low, high = representable
    return int(torch.count_nonzero(block < low)) + int(torch.count_nonzero(block > high))


class _Layout:
    """How a tensor's samples lie in memory, so that they can be read as rows without a copy.

    Of a sampled row, runs of PLACE elements are read at even steps. The step is prime to the number of
    channels, so that all of them have their turn whichever way they lie.
    """

    def __init__(self, tensor: Tensor, sample: int | None = None) -> None:
        self.shape = tensor.shape
        self.last = tensor.dim() == 4 and not tensor.is_contiguous() and _is_channels_last(tensor)
        width = tensor[:1].numel() if tensor.dim() else 1
        self.places = max((sample or 0) // PLACE, 1)
        self.step = _step(width, self.places, tensor.shape[1:2].numel())
        self.sampled = sample is not None and self.step > PLACE

    def rows(self, tensor: Tensor) -> Tensor:
        rows = self._all(tensor if tensor.shape == self.shape else tensor.expand(self.shape))
        if not self.sampled:
            return rows
        runs: Tensor = rows[:, : self.places * self.step].unflatten(1, (self.places, self.step))[:, :, :PLACE]
        return runs.reshape(len(rows), -1)

    def _all(self, tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor.reshape(1, 1)
        if self.last:
            return tensor.permute(0, 2, 3, 1).reshape(len(tensor), -1)
        return tensor.reshape(len(tensor), -1 if tensor.numel() else 0)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def _step(width: int, places: int, channels: int) -> int:
    step = max(width // places, 1)
    while math.gcd(step, channels) > 1:
        step -= 1
    return step


@dataclass
class ErrorSums:
    """Energies of a reference, of what came instead, and of their difference.

    Samples that hold NaN or infinity on either side are counted and left out of all sums.
    """

    signal: float = 0.0
    noise: float = 0.0
    actual: float = 0.0
    largest: float = 0.0
    nonfinite: list[int] = field(default_factory=list)
    """Positions of such samples."""

    def add(
        self,
        reference: Reference,
        actual: Tensor,
        position: int = 0,
        representable: tuple[float, float] | None = None,
    ) -> Meeting:
        """Add a batch whose first sample stands at ``position``."""
        met = reference.meet(actual, representable)
        good = np.isfinite(met.noise) & np.isfinite(reference.energy) & np.isfinite(met.actual)
        self.signal += float(reference.energy[good].sum())
        self.noise += float(met.noise[good].sum())
        self.actual += float(met.actual[good].sum())
        if good.all():
            self.largest = max(self.largest, met.largest)
        else:
            self.nonfinite += [position + int(row) for row in np.flatnonzero(~good)]
        return met

    @property
    def sqnr_db(self) -> float | None:
        """None where both are equal, and where the signal is zero."""
        return ratio_db(self.signal, self.noise)

    @property
    def cosine(self) -> float | None:
        """Of the two as vectors over all samples; None where one side is all zero."""
        scale = math.sqrt(self.signal * self.actual)
        product = (self.signal + self.actual - self.noise) / 2
        return max(min(product / scale, 1.0), -1.0) if scale else None

    @property
    def nmse(self) -> float | None:
        """Energy of the error over that of the signal; None where the signal is zero."""
        return self.noise / self.signal if self.signal else None

    @property
    def max_abs_error(self) -> float:
        """In the units of the layer's output."""
        return self.largest
