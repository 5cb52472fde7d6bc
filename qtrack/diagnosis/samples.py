"""The calibration set by itself: is it what PyTorch's guide asks for? All of ``qtrack audit``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qtrack.data import SplitInfo
from qtrack.diagnosis.inputs import FAR, Chosen, Drift, Spread, drift, outlying
from qtrack.diagnosis.making import fine, named, not_checked
from qtrack.finding import Figure, Finding
from qtrack.numerics.extent import Extent

SIZE = "calibration size"
CLASSES = "calibration classes"
COPIES = "calibration duplicates"
OVERLAP = "calibration overlap"
LIKENESS = "calibration likeness"
OUTLIERS = "calibration outliers"
EXTENTS = "calibration ranges"
AT_LEAST = 100
SEVERAL = 2
WIDER = 2.0
"""Times the calibrated range: one bit that calibration did not ask for."""
DISTANCE, CHANCE = 0.3, 0.001
GUIDE = "PyTorch's guide"


def facts(
    chosen: Chosen,
    spreads: Mapping[str, Spread],
    calibrated: Mapping[str, Extent],
    met: Mapping[str, Extent],
) -> list[Finding]:
    """What can be said of the calibration samples before anything is quantized.

    ``calibrated`` are the float layers' ranges on them, ``met`` those on validation samples.
    """
    return [
        _size(chosen.calibration),
        _copies(chosen.calibration),
        _classes(chosen),
        _overlap(chosen),
        _likeness(drift(spreads["calibration"], spreads["validation"])),
        _outliers(outlying(spreads["calibration"])),
        _extents(calibrated, met),
    ]


def _size(found: SplitInfo) -> Finding:
    figure = Figure("calibration samples", found.samples)
    threshold = f"at least {AT_LEAST} ({GUIDE})"
    if found.samples >= AT_LEAST:
        return fine(SIZE, f"{found.samples} samples", figure, threshold=threshold)
    text = f"observers see {found.samples} samples"
    return Finding(SIZE, "fault", text, "too few calibration samples", (figure,), threshold, 1.0)


def _copies(found: SplitInfo) -> Finding:
    counts = Counter(found.sample_digests)
    copies = found.samples - len(counts)
    figures = (Figure("distinct samples", len(counts)), Figure("copies", copies))
    threshold = f"fewer than {AT_LEAST} distinct samples among enough, or a tenth of all are copies"
    few = found.samples >= AT_LEAST > len(counts)
    if not few and copies < found.samples / 10:
        return fine(COPIES, f"{len(counts)} distinct samples", *figures, threshold=threshold)
    text = f"{copies} of {found.samples} samples are copies of others"
    return Finding(COPIES, "fault", text, "duplicated calibration samples", figures, threshold, 1.0)


def _classes(chosen: Chosen) -> Finding:
    seen, wanted = chosen.calibration.per_class, chosen.splits["validation"].per_class
    if not wanted or len(wanted) > chosen.splits["validation"].samples / 2:
        return not_checked(CLASSES, "the task has no classes")
    scarce = [label for label in wanted if seen.get(label, 0) < SEVERAL]
    figures = (
        Figure("classes of the validation split", len(wanted)),
        Figure("with fewer than two calibration samples", len(scarce)),
    )
    threshold = f"several samples of every class ({GUIDE})"
    if not scarce:
        return fine(CLASSES, f"all {len(wanted)} classes are there", *figures, threshold=threshold)
    shown = ", ".join(map(str, scarce[:5])) + (", ..." if len(scarce) > 5 else "")
    text = f"{len(scarce)} of {len(wanted)} classes are missing or there once: {shown}"
    return Finding(CLASSES, "fault", text, "classes without calibration samples", figures, threshold, 1.0)


def _overlap(chosen: Chosen) -> Finding:
    own = set(chosen.calibration.sample_digests)
    shared = {
        name: len(own & set(split.sample_digests))
        for name, split in chosen.splits.items()
        if name != "calibration"
    }
    figures = tuple(Figure(f"shared with {name}", count) for name, count in shared.items())
    met = {name: count for name, count in shared.items() if count}
    if not met:
        return fine(OVERLAP, "no sample occurs in another split", *figures, threshold="any sample")
    text = f"samples occur in {' and '.join(met)} too: figures there flatter"
    cause = "calibration samples that occur in other splits"
    return Finding(OVERLAP, "fault", text, cause, figures, "any sample, by content", 1.0)


def _likeness(found: Drift | None) -> Finding:
    if found is None:
        return not_checked(LIKENESS, "no input is floating point")
    figures = (
        Figure(f"distance of the {found.statistic}", found.distance),
        Figure("by chance", found.p),
    )
    threshold = f"Kolmogorov-Smirnov distance of {DISTANCE} that chance gives less than once in 1,000 times"
    if found.distance < DISTANCE or found.p > CHANCE:
        return fine(LIKENESS, "inputs are like those of the validation split", *figures, threshold=threshold)
    text = f"inputs are unlike those of the validation split in their {found.statistic}"
    cause = "calibration samples unlike the data"
    return Finding(LIKENESS, "fault", text, cause, figures, threshold, 1 - found.p)


def _outliers(apart: NDArray[np.bool_]) -> Finding:
    figure = Figure("samples with far larger inputs", int(apart.sum()))
    threshold = f"{FAR:.0f} median deviations beyond the median magnitude, and twice as large"
    if not apart.any():
        return fine(OUTLIERS, "no sample is unlike the others", figure, threshold=threshold)
    text = f"{int(apart.sum())} of {len(apart)} samples have inputs far larger than the others"
    return Finding(OUTLIERS, "remark", text, figures=(figure,), threshold=threshold)


def _extents(calibrated: Mapping[str, Extent], met: Mapping[str, Extent]) -> Finding:
    """How far layers go beyond the range that calibration samples give them."""
    wider = {name: _beyond(calibrated[name], met[name]) for name in calibrated if name in met}
    threshold = f"{WIDER:.0f} times the calibrated range, which is one bit"
    if not wider:
        return not_checked(EXTENTS, "no layer gives floating point numbers")
    layers = sorted((name for name in wider if wider[name] >= WIDER), key=lambda name: -wider[name])
    figures = (Figure("widest range over the calibrated", max(wider.values()), "times"),)
    if not layers:
        return fine(EXTENTS, "validation samples stay within what layers know", *figures, threshold=threshold)
    text = f"validation samples go beyond the calibrated ranges of {named(layers)}"
    return Finding(EXTENTS, "remark", text, figures=figures, threshold=threshold, layers=tuple(layers))


def _beyond(calibrated: Extent, met: Extent) -> float:
    """The range over both kinds of samples over that of the calibration samples; 1 where that is all."""
    low, high = calibrated
    width = max(high, 0.0) - min(low, 0.0)  # zero is in every range, as observers have it
    both = max(high, met[1], 0.0) - min(low, met[0], 0.0)
    return both / width if width > 0 else 1.0
