"""Observers: would another way to choose the ranges of activations serve the values that were seen?

Judged offline, from the distribution of each layer's output that the layer comparison keeps
(``qtrack.numerics.ranges``).
"""

from __future__ import annotations

from collections.abc import Iterator

from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import best_of, fine, judged, named, not_checked, remedy, static_layers
from qtrack.finding import Figure, Finding, Remedy
from qtrack.outcome import LayerRow
from qtrack.recipe import Static

CHECK = "observers"
MIN_GAIN_DB = 1.0
HALF_A_BIT_DB = 3.0
THRESHOLD = f"{HALF_A_BIT_DB:.0f} dB of SQNR, half a bit, in some layer's output"
KINDS = ("min_max", "percentile", "histogram")


def check(examination: Examination) -> Finding:
    """PyTorch's guide: adjust observer settings to choose a better scale and zero-point."""
    if not static_layers(examination):
        return not_checked(CHECK, "no activation has a range fixed by calibration")
    default = examination.recipe.default
    kind = default.activation.observer.kind if isinstance(default, Static) else "histogram"
    gains = {row.layer: _gain_db(row, kind) for row in examination.calibrated.rows}
    layers = sorted((layer for layer, gain in gains.items() if gain > 0), key=lambda layer: -gains[layer])
    if not layers or gains[layers[0]] < HALF_A_BIT_DB or not examination.suffers:
        best = gains[layers[0]] if layers else 0.0
        figure = Figure("largest gain of another observer", best, "dB")
        return fine(CHECK, f"{kind} ranges fit", figure, threshold=THRESHOLD)
    worst = next(row for row in examination.calibrated.rows if row.layer == layers[0])
    wanting = [layer for layer in layers if gains[layer] >= MIN_GAIN_DB]
    return judged(
        examination,
        CHECK,
        f"{kind} ranges follow outliers in {named(wanting)}",
        best_of(*_remedies(examination)),
        cause="outliers in activation ranges",
        figures=(
            Figure("gain of another observer", gains[layers[0]], "dB"),
            Figure("largest value over the 99.9th percentile", worst.outlier_ratio, "times"),
            Figure("layers that gain", len(wanting)),
        ),
        threshold=THRESHOLD,
        layers=wanting,
    )


def _remedies(examination: Examination) -> Iterator[Remedy | None]:
    """Layer by layer, and for all: what feeds the network is no layer's output and follows the default."""
    yield remedy(examination, "observers", why="each layer the observer that serves its values")
    for kind in ("histogram", "percentile"):
        yield remedy(examination, "observers", {"activation": kind}, f"{kind} ranges, the input's among them")


def _gain_db(row: LayerRow, kind: str) -> float:
    """What the best observer gains over this one, estimated; 0 where nothing is known."""
    known = {name: getattr(row, f"{name}_db") for name in KINDS}
    now = known.get("min_max" if kind == "moving_average" else kind)
    best = max((value for value in known.values() if value is not None), default=None)
    return 0.0 if now is None or best is None else best - now
