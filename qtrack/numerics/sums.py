"""Running sums from which every error measure follows, for any number of batches.

Tensors are read in blocks small enough for the processor's cache, each block once for all measures: reading a
large activation from memory costs more than all the arithmetic on it. Within a block sums are float32, between
blocks float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 17
"""Elements of a block: half a megabyte of float32."""
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

    def __init__(self, tensor: Tensor, *, sample: int | None = None) -> None:
        """With ``sample``, only so many elements of each row are looked at: a block at a place fixed by its shape."""
        self.layout = _Layout(tensor)
        self.rows = self.layout.rows(tensor.float())
        self.energy: Values | None = None
        self.low: Values = np.full(len(self.rows), math.inf)
        self.high: Values = np.full(len(self.rows), -math.inf)
        self.columns = _some_columns(self.rows.shape[1], sample)

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each block."""
        width = max(min(self.columns.stop - self.columns.start, BLOCK), 1)
        height = max(BLOCK // width, 1)
        for top in range(0, len(self.rows), height):
            for left in range(self.columns.start, self.columns.stop, width):
                yield slice(top, top + height), slice(left, min(left + width, self.columns.stop))

    def learn(self) -> None:
        """Energy and range of each sample."""
        if self.energy is None:
            self.energy = np.zeros(len(self.rows))
            for rows, columns in self.blocks():
                self._learn_block(self.rows[rows, columns], rows, self.energy)

    def _learn_block(self, block: Tensor, rows: slice, energy: Values) -> None:
        energy[rows] += _energies(block)
        if block.shape[1]:
            self.low[rows] = np.minimum(self.low[rows], block.amin(1).numpy())
            self.high[rows] = np.maximum(self.high[rows], block.amax(1).numpy())

    def meet(self, actual: Tensor, representable: tuple[float, float] | None = None) -> Meeting:
        """Energies of what came instead and of its error, sample by sample; what lay outside is counted."""
        rows = self.layout.rows(actual)
        found = Meeting.zero(len(self.rows))
        first = self.energy is None
        energy = np.zeros(len(self.rows)) if self.energy is None else self.energy
        for top, left in self.blocks():
            reference, other = self.rows[top, left], rows[top, left]
            other = other.dequantize() if other.is_quantized else other.float()
            if first:  # while the block is in the cache
                self._learn_block(reference, top, energy)
            found.add(reference, other, top)
            if representable:
                found.clipped += self._outside(reference, top, representable)
        self.energy = energy
        return found

    def _outside(self, block: Tensor, rows: slice, representable: tuple[float, float]) -> int:
        """Elements that a range cuts off, counted only where the samples' own ranges go beyond it."""
        low, high = representable
        below = int((block < low).sum()) if self.low[rows].min() < low else 0
        return below + (int((block > high).sum()) if self.high[rows].max() > high else 0)


@dataclass
class Meeting:
    """A reference and what came instead, on one batch."""

    noise: Values
    actual: Values
    largest: float = 0.0
    clipped: int = 0
    elements: int = 0

    @classmethod
    def zero(cls, samples: int) -> Meeting:
        return cls(np.zeros(samples), np.zeros(samples))

    def add(self, reference: Tensor, actual: Tensor, rows: slice) -> None:
        self.elements += reference.numel()
        self.actual[rows] += _energies(actual)
        error = torch.sub(reference, actual)
        self.noise[rows] += _energies(error)
        if error.numel():
            self.largest = max(self.largest, float(error.amax()), -float(error.amin()))


class _Layout:
    """How a tensor's samples lie in memory, so that they can be read as rows without a copy."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape = tensor.shape
        self.last = tensor.dim() == 4 and not tensor.is_contiguous() and _is_channels_last(tensor)

    def rows(self, tensor: Tensor) -> Tensor:
        if tensor.shape != self.shape:
            tensor = tensor.expand(self.shape)
        if not tensor.dim():
            return tensor.reshape(1, 1)
        if self.last:
            return tensor.permute(0, 2, 3, 1).reshape(len(tensor), -1)
        return tensor.reshape(len(tensor), -1 if tensor.numel() else 0)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def _energies(block: Tensor) -> Values:
    norms: Values = torch.linalg.vector_norm(block, dim=1).double().numpy()
    return norms * norms


def _some_columns(width: int, sample: int | None) -> slice:
    if sample is None or sample >= width:
        return slice(0, width)
    start = int(np.random.default_rng(width).integers(0, width - sample + 1))
    return slice(start, start + sample)


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
        assert reference.energy is not None
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
