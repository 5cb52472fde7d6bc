"""Which candidates need not be evaluated in full, judged by the samples that suffered most so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qtrack.stages.evidence import Judged, Target
from qtrack.statistics import Scores, paired_drop, target_met

SUSPECTS = 128
FEWEST = 8


def suspects(baseline: Judged, tried: Sequence[Judged]) -> list[int]:
    """Positions of the validation samples that lost most over all that was tried, at most SUSPECTS."""
    lost = np.zeros(len(baseline.outcome.validation.scores))
    for judged in tried:
        lost += np.maximum(baseline.outcome.validation.scores - judged.outcome.validation.scores, 0.0)
    worst = np.argsort(-lost, kind="stable")[:SUSPECTS]
    return sorted(int(position) for position in worst if lost[position] > 0)


def may_meet(
    scores_of: Callable[[Sequence[int]], NDArray[np.float64]],
    baseline: Judged,
    tried: Sequence[Judged],
    target: Target,
) -> bool:
    """Could a candidate still meet the target if it lost nothing on all samples but the suspects?

    What it might win elsewhere is not counted on: a candidate that is saved by that is rejected wrongly. A
    rejection costs a step of the search, never a wrong acceptance.
    """
    positions = suspects(baseline, tried)
    if len(positions) < FEWEST:
        return True
    floating = baseline.outcome.validation.scores
    hopeful: Scores = floating.copy()
    hopeful[positions] = scores_of(positions)
    return target_met(paired_drop(floating, hopeful, target.confidence), target.max_drop) is True
