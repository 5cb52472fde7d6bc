"""How sure a difference between two models is, from the scores of the same samples under both."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
MOST_SAMPLES = 10**9


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


def stricter(confidence: float, looks: int) -> float:
    """Of each interval where one among so many is to be chosen by them: the error allowed is shared out.

    (Bonferroni; many looks at the same samples make one of them look good by luck.)
    """
    return 1 - (1 - confidence) / looks


def unpaired_drop(baseline: Scores, scores: Scores, confidence: float = 0.95) -> Drop:
    """The same where the two are scores of different samples, so that each side has its own chance.

    Scores of 0 and 1 get Agresti and Caffo's interval (The American Statistician 54, 2000: one hit and one
    miss added to each side), all others Welch's. Its number of samples is that of the smaller side.
    """
    binary = _is_binary(baseline) and _is_binary(scores)
    interval = _two_shares_interval if binary else _welch_interval
    low, high = interval(baseline, scores, confidence)
    value = float(baseline.mean() - scores.mean())
    return Drop(value, low, high, confidence, min(len(baseline), len(scores)))


def is_chance(change: float, samples: int, confidence: float = 0.95) -> bool:
    """Is a change of the share of hits too small for any paired interval to clear 0?

    The interval is narrowest where no sample flipped but those that make up the change.
    """
    return _adjusted(abs(change) * samples, 0.0, samples, confidence)[0] <= 0


def samples_needed(drop: Drop, max_drop: float) -> int | None:
    """The fewest samples, beyond those at hand, with which the interval would clear ``max_drop``.

    That is at the same rates, which are read back from the interval: as other samples have rates of their
    own, so many decide about every second time. None where no number does, as the drop is the limit itself.
    """
    interval = _interval_by_samples(drop) if drop.samples > 0 else None
    if interval is None or math.isclose(drop.value, max_drop, abs_tol=1e-9):
        return None

    def clears(samples: int) -> bool:
        low, high = interval(samples)
        return high <= max_drop or low > max_drop

    enough = drop.samples
    while not clears(enough):
        enough *= 2
        if enough > MOST_SAMPLES:
            return None
    return bisect_left(range(enough), True, lo=drop.samples, key=clears)


def flips_of(drop: Drop) -> tuple[int, int] | None:
    """How many samples were lost and won, as the interval tells; None where scores were not 0 and 1."""
    if not math.isfinite(drop.high - drop.low):
        return None
    n, net = drop.samples, drop.value * drop.samples
    center = net / (n + 2)
    half = max(drop.high - center, center - drop.low)
    flipped = (half * (n + 2) / _quantile(drop.confidence)) ** 2 - 1 + net**2 / (n + 2)
    lost, won = (flipped + net) / 2, (flipped - net) / 2
    if not all(math.isclose(count, round(count), abs_tol=1e-3) and count > -0.5 for count in (lost, won)):
        return None
    return round(lost), round(won)


def _interval_by_samples(drop: Drop) -> Callable[[int], tuple[float, float]] | None:
    """The interval that so many samples with the same rates, or the same spread, would give."""
    n, flips = drop.samples, flips_of(drop)
    if flips is not None:
        lost, won = (count / n for count in flips)
        return lambda samples: _adjusted(lost * samples, won * samples, samples, drop.confidence)
    if n < 2 or drop.high == drop.low or not math.isfinite(drop.high - drop.low):
        return None
    spread = (drop.high - drop.low) / 2 * math.sqrt(n) / _student(n - 1, drop.confidence)

    def by_spread(samples: int) -> tuple[float, float]:
        half = _student(samples - 1, drop.confidence) * spread / math.sqrt(samples)
        return drop.value - half, drop.value + half

    return by_spread


def _is_binary(scores: Scores) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def _binary_interval(differences: Scores, confidence: float) -> tuple[float, float]:
    lost, won = float((differences > 0).sum()), float((differences < 0).sum())
    return _adjusted(lost, won, len(differences), confidence)


def _adjusted(lost: float, won: float, samples: int, confidence: float) -> tuple[float, float]:
    n = samples + 2
    center = (lost - won) / n
    spread = math.sqrt(max(lost + won + 1 - (lost - won) ** 2 / n, 0.0)) / n
    half = _quantile(confidence) * spread
    return max(center - half, -1.0), min(center + half, 1.0)


def _two_shares_interval(baseline: Scores, scores: Scores, confidence: float) -> tuple[float, float]:
    shares = [(float(side.sum()) + 1) / (len(side) + 2) for side in (baseline, scores)]
    variance = sum(
        share * (1 - share) / (len(side) + 2) for share, side in zip(shares, (baseline, scores), strict=True)
    )
    center, half = shares[0] - shares[1], _quantile(confidence) * math.sqrt(variance)
    return max(center - half, -1.0), min(center + half, 1.0)


def _welch_interval(baseline: Scores, scores: Scores, confidence: float) -> tuple[float, float]:
    first, second = (
        float(side.var(ddof=1)) / len(side) if len(side) > 1 else math.inf for side in (baseline, scores)
    )
    center = float(baseline.mean() - scores.mean())
    if not math.isfinite(first + second):
        return -math.inf, math.inf
    if first + second == 0:
        return center, center
    freedom = (first + second) ** 2 / (first**2 / (len(baseline) - 1) + second**2 / (len(scores) - 1))
    half = _student(freedom, confidence) * math.sqrt(first + second)
    return center - half, center + half


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _student(freedom: float, confidence: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + confidence / 2, freedom))


def _t_interval(differences: Scores, confidence: float) -> tuple[float, float]:
    n = len(differences)
    mean = float(differences.mean())
    if n < 2:
        return -math.inf, math.inf
    half = _student(n - 1, confidence) * float(differences.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half
