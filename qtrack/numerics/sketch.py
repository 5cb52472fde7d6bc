"""A histogram of unlimited range: eight buckets to the octave, read off the bits of the numbers.

It needs no look at the data beforehand, adds up over batches, and puts every quantile within an eighth of an
octave (12.5%).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

SHIFT = 20
"""Of a float32's bits: sign, eight of exponent and three of mantissa remain."""
BUCKETS = 1 << 12
NEGATIVE = BUCKETS // 2
FINITE = 0x7F800000 >> SHIFT
"""Buckets of either sign; those above hold infinity and NaN."""
ELEMENTS = 4096
"""Looked at in each batch: a block of each sample."""


@dataclass
class Sketch:
    """Counts by sign and magnitude of the elements looked at."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BUCKETS, np.int64))

    def add(self, rows: Tensor) -> None:
        """Add some of a batch's elements; rows are samples."""
        some = rows[:, : max(ELEMENTS // max(len(rows), 1), 1)]
        self.counts += np.bincount(buckets_of(some).reshape(-1), minlength=BUCKETS)

    @property
    def zeros(self) -> float | None:
        """Share of elements that are zero; None where nothing was seen."""
        total = self.counts.sum()
        return float((self.counts[0] + self.counts[NEGATIVE]) / total) if total else None

    def magnitude(self, quantile: float) -> float | None:
        """The magnitude that this share of elements does not exceed; None where nothing was seen."""
        counts = self.counts[:FINITE] + self.counts[NEGATIVE : NEGATIVE + FINITE]
        total = counts.sum()
        if not total:
            return None
        bucket = int(np.searchsorted(np.cumsum(counts), quantile * total))
        return float(magnitudes()[bucket + 1]) if bucket else 0.0

    def histogram(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Counts from the most negative to the largest, and their edges, empty ends left out."""
        negative = self.counts[NEGATIVE : NEGATIVE + FINITE]
        counts = np.concatenate([negative[::-1], self.counts[:FINITE]])
        edges = np.concatenate([-magnitudes()[::-1], magnitudes()[1:]])
        filled = np.flatnonzero(counts)
        if not len(filled):
            return counts[:0], edges[:1]
        return counts[filled[0] : filled[-1] + 1], edges[filled[0] : filled[-1] + 2]


def buckets_of(values: Tensor | NDArray[np.float32]) -> NDArray[np.int32]:
    """The bucket of each element of a float32 matrix."""
    plain = values.contiguous().cpu().numpy() if isinstance(values, Tensor) else np.ascontiguousarray(values)
    found: NDArray[np.int32] = (plain.view(np.int32) >> SHIFT) & (BUCKETS - 1)
    return found


def magnitudes() -> NDArray[np.float32]:
    """Lower edges of the magnitudes' buckets, and infinity."""
    return (np.arange(FINITE + 1, dtype=np.int32) << SHIFT).view(np.float32)
