"""How sure a difference between two models is, from the scores of the same samples under both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Drop:
    """Loss of the metric against the baseline, positive where it got worse, with its confidence interval."""

    value: float
    low: float
    high: float
    confidence: float
    samples: int


def paired_drop(baseline: Scores, scores: Scores, confidence: float = 0.95) -> Drop:
    """Mean of ``baseline - scores`` over the same samples, with a two-sided interval.

    Scores of 0 and 1 (right or wrong) get Agresti and Min's adjusted Wald interval for matched pairs
    (Statistics in Medicine 24, 2005: half a pair added to each cell), which stays honest where few or no
    samples flip; all others get Student's t on the differences.
    """
    if baseline.shape != scores.shape:
        raise ValueError(f"paired scores need the same samples: {baseline.shape} against {scores.shape}")
    differences = baseline - scores
    interval = _binary_interval if _is_binary(baseline) and _is_binary(scores) else _t_interval
    low, high = interval(differences, confidence)
    return Drop(float(differences.mean()), low, high, confidence, len(differences))


def target_met(drop: Drop, max_drop: float) -> bool | None:
    """True or False where the whole interval lies on one side of ``max_drop``; None where it is not sure."""
    if drop.high <= max_drop:
        return True
    if drop.low > max_drop:
        return False
    return None


def _is_binary(scores: Scores) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def _binary_interval(differences: Scores, confidence: float) -> tuple[float, float]:
    lost, won = float((differences > 0).sum()), float((differences < 0).sum())
    n = len(differences) + 2
    center = (lost - won) / n
    spread = math.sqrt(max(lost + won + 1 - (lost - won) ** 2 / n, 0.0)) / n
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    return max(center - half, -1.0), min(center + half, 1.0)


def _t_interval(differences: Scores, confidence: float) -> tuple[float, float]:
    from scipy.stats import t

    n = len(differences)
    mean = float(differences.mean())
    if n < 2:
        return -math.inf, math.inf
    half = float(t.ppf(0.5 + confidence / 2, n - 1) * differences.std(ddof=1) / math.sqrt(n))
    return mean - half, mean + half
