"""Data-insensitive or data-sensitive: do all samples have the error, or a few that are unlike the others?"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import fine, named
from qtrack.finding import Figure, Finding

CHECK = "distribution of the error"
OUTLYING_DB = 10.0
FEW = 0.25
THRESHOLD = (
    f"data-sensitive: at most {FEW:.0%} of the samples have {OUTLYING_DB:.0f} dB less than the median one "
    "and hold more than half of the loss (PyTorch's guide: a small portion has large error)"
)
LOOKED_AT = 32
SHOWN = 5


def check(examination: Examination) -> Finding:
    """Error by sample, at the network's output."""
    values = _known(examination)
    median, low = (float(np.percentile(values, q)) for q in (50, 5)) if len(values) else (None, None)
    figures = [Figure("SQNR of the median sample", median, "dB"), Figure("of the worst 5%", low, "dB")]
    if not examination.suffers:
        return fine(CHECK, "no loss beyond chance or the target", *figures, threshold=THRESHOLD)
    outlying, lost = _outlying(examination), _lost(examination)
    share = float((outlying & lost).sum() / max(lost.sum(), 1))
    figures += [
        Figure("samples that are unlike the others", 100 * float(outlying.mean()), "%"),
        Figure("of the lost samples among them", 100 * share, "%"),
    ]
    sensitive = is_sensitive(examination)
    which = np.flatnonzero(outlying & lost) if sensitive else np.flatnonzero(lost)
    return Finding(
        CHECK,
        "remark",
        _sensitive(examination, which) if sensitive else _insensitive(examination, lost),
        figures=tuple(figures),
        threshold=THRESHOLD,
        confidence=share if sensitive else 1 - share,
        layers=tuple(_broken(examination, which)) if sensitive else (),
    )


def is_sensitive(examination: Examination) -> bool:
    """Do a few samples, unlike the others, hold most of the loss?"""
    outlying, lost = _outlying(examination), _lost(examination)
    return bool(0 < outlying.mean() <= FEW and (outlying & lost).sum() > lost.sum() / 2)


def _known(examination: Examination) -> NDArray[np.float64]:
    values = examination.sample_sqnr_db
    return values[np.isfinite(values)]


def _outlying(examination: Examination) -> NDArray[np.bool_]:
    """Samples far worse than the median one; without a number at their output they are."""
    values = np.nan_to_num(examination.sample_sqnr_db, nan=-np.inf)
    return np.asarray(values < np.median(values) - OUTLYING_DB)


def _lost(examination: Examination) -> NDArray[np.bool_]:
    """Samples with a lower score than the float model's."""
    return np.asarray(examination.quantized.scores < examination.floating.scores)


def _sensitive(examination: Examination, which: NDArray[np.intp]) -> str:
    count = len(examination.quantized.scores)
    samples = ", ".join(map(str, which[:SHOWN])) + (", ..." if len(which) > SHOWN else "")
    layers = _broken(examination, which)
    broken = f"; they break the ranges of {named(layers)}" if layers else ""
    return f"{len(which)} of {count} samples ({samples}) have an error far beyond that of the others{broken}"


def _insensitive(examination: Examination, lost: NDArray[np.bool_]) -> str:
    count = f"{int(lost.sum())} of {len(lost)} are lost{_class(examination, lost)}"
    return f"the error is spread over all samples; {count}"


def _class(examination: Examination, lost: NDArray[np.bool_]) -> str:
    """The class that holds most of the lost samples, for people."""
    labels = examination.floating.labels
    if labels is None or len(labels) != len(lost) or not lost.any():
        return ""
    (label, count), *_ = Counter(labels[lost].tolist()).most_common(1)
    return f", {count} of them of class {label}"


def _broken(examination: Examination, which: NDArray[np.intp]) -> list[str]:
    """Layers that cut off five times as much of these samples as of others."""
    if not len(which):
        return []
    few = {
        row.layer: row.saturation or 0.0 for row in examination.compared_on(which[:LOOKED_AT].tolist()).rows
    }
    usual = {layer: row.saturation or 0.0 for layer, row in examination.rows.items()}
    broken = [layer for layer, share in few.items() if share > 0.001 and share > 5 * usual.get(layer, 0.0)]
    return sorted(broken, key=lambda layer: -few[layer])
