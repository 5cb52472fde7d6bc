"""How far quantized weights are from the float ones, as a whole and channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from qtrack.numerics.sums import Reference, ratio_db


@dataclass(frozen=True)
class WeightError:
    """SQNR in decibels; None where both sides are equal, or there is nothing to compare."""

    sqnr_db: float | None = None
    channel_sqnr_db: float | None = None
    """Of the worst output channel."""
    worst_channel: int | None = None


def weight_error(weight: Tensor | None, actual: Tensor | None) -> WeightError:
    """Compare two weights of one shape, output channels first; None stands for no weight."""
    if weight is None or actual is None:
        return WeightError()
    reference = Reference(weight.detach())
    met = reference.meet(actual.detach())
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.nan_to_num(met.noise / reference.energy, nan=0.0, posinf=0.0)
    worst = int(share.argmax())
    return WeightError(
        ratio_db(float(reference.energy.sum()), float(met.noise.sum())),
        ratio_db(float(reference.energy[worst]), float(met.noise[worst])),
        worst if share[worst] else None,
    )
