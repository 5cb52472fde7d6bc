"""Equalization: do the channels that cross from one layer to the next differ in range for no reason?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import best_of, fine, judged, named, not_checked, remedy
from qtrack.errors import BackendError
from qtrack.finding import Figure, Finding
from qtrack.transforms import adjacent_pairs

CHECK = "equalization"
UNEQUAL = 8.0
THRESHOLD = f"factors {UNEQUAL:.0f} times apart, which is 3 bits (Nagel et al. 2019, section 4.1)"


def check(examination: Examination) -> Finding:
    """Ranges of channels between adjacent layers, which rescaling evens out at no cost."""
    if examination.recipe.applies("equalize"):
        return fine(CHECK, "layers are equalized already")
    try:
        spreads = dict(_spreads(examination))
    except BackendError as error:
        return not_checked(CHECK, str(error))
    if not spreads:
        return fine(CHECK, "no two layers meet with nothing but ReLU between them")
    pairs = sorted(spreads, key=lambda pair: -spreads[pair])
    figures = (
        Figure("factors to even out the worst pair", spreads[pairs[0]], "times apart"),
        Figure("pairs beyond the threshold", sum(spread >= UNEQUAL for spread in spreads.values())),
    )
    if spreads[pairs[0]] < UNEQUAL or not examination.suffers:
        return fine(CHECK, "adjacent layers have like ranges", *figures, threshold=THRESHOLD)
    worst = [f"{first} > {second}" for first, second in pairs if spreads[first, second] >= UNEQUAL]
    return judged(
        examination,
        CHECK,
        f"channels differ in range between {named(worst)}",
        best_of(remedy(examination, "equalize", why="even out channel ranges across adjacent layers")),
        cause="unequal channels of adjacent layers",
        figures=figures,
        threshold=THRESHOLD,
        layers=[layer for pair in pairs if spreads[pair] >= UNEQUAL for layer in pair],
    )


def _spreads(examination: Examination) -> Iterator[tuple[tuple[str, str], float]]:
    """By pair of layers: how far apart the factors are that would equalize 90% of their channels."""
    weights = {
        site.layer: site.weight.detach().float() for site in examination.pair.sites if site.weight is not None
    }
    for first, second in adjacent_pairs(examination.model, examination.recipe.non_traceable):
        if first in weights and second in weights:
            ratio = _ranges(weights[first], 0) / _inputs(weights[second], len(weights[first]))
            known = ratio[np.isfinite(ratio) & (ratio > 0)]
            if len(known) > 1:
                low, high = np.percentile(np.sqrt(known), [5, 95])
                yield (first, second), float(high / low)


def _inputs(weight: Tensor, channels: int) -> np.ndarray:
    """Ranges by input channel; a depthwise filter has its one input channel on the axis of its outputs."""
    return _ranges(weight, 1 if weight.shape[1] == channels else 0)


def _ranges(weight: Tensor, axis: int) -> np.ndarray:
    ranges = weight.abs().transpose(0, axis).flatten(1).amax(1)
    return np.asarray(ranges.double().numpy())
