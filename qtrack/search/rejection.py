"""Which candidates need not be evaluated in full, judged by the samples that suffered most so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qtrack.statistics import Scores, paired_drop, target_met

SUSPECTS = 128
FEWEST = 8


def suspects(floating: Scores, tried: Sequence[Scores]) -> list[int]:
    """Positions of the samples that lost most over all that was tried, at most SUSPECTS."""
    lost = np.zeros(len(floating))
    for scores in tried:
        lost += np.maximum(floating - scores, 0.0)
    worst = np.argsort(-lost, kind="stable")[:SUSPECTS]
    return sorted(int(position) for position in worst if lost[position] > 0)


def may_meet(
    scores_of: Callable[[Sequence[int]], Scores],
    floating: Scores,
    tried: Sequence[Scores],
    max_drop: float,
    confidence: float,
) -> bool:
    """Could a candidate still meet the target if it lost nothing on all samples but the suspects?

    What it might win elsewhere is not counted on: a candidate that is saved by that is rejected wrongly. A
    rejection costs a step of the search, never a wrong acceptance.
    """
    positions = suspects(floating, tried)
    if len(positions) < FEWEST:
        return True
    hopeful = floating.copy()
    hopeful[positions] = scores_of(positions)
    return target_met(paired_drop(floating, hopeful, confidence), max_drop) is True
