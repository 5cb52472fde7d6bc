"""Static or dynamic: does one range serve a layer's inputs, whatever the sample?"""

from __future__ import annotations

from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import best_of, fine, judged, named, not_checked, remedy, static_layers
from qtrack.finding import Figure, Finding, Remedy

CHECK = "static or dynamic"
VARIES = 0.5
THRESHOLD = f"standard deviation of the input's range over samples beyond {VARIES} of its mean"
DYNAMIC_TYPES = ("Linear", "LSTM", "GRU", "LSTMCell", "GRUCell", "RNNCell")


def check(examination: Examination) -> Finding:
    """PyTorch's guide: where a layer's input varies much across samples, quantize it dynamically."""
    if not static_layers(examination):
        return not_checked(CHECK, "no activation has a range fixed by calibration")
    variations = {
        row.layer: row.range_variation or 0.0
        for row in examination.rows.values()
        if row.dtype == "int8" and row.type in DYNAMIC_TYPES
    }
    if not variations:
        return fine(CHECK, "no static layer has a dynamic kernel", threshold=THRESHOLD)
    varying = sorted((name for name, v in variations.items() if v >= VARIES), key=lambda n: -variations[n])
    figures = (
        Figure("largest variation", max(variations.values())),
        Figure("layers beyond the threshold", len(varying)),
    )
    if not varying:
        return fine(CHECK, "inputs have like ranges in all samples", *figures, threshold=THRESHOLD)
    text = f"the range of the input varies by sample in {named(varying)}"
    return judged(
        examination,
        CHECK,
        text,
        _remedies(examination) if examination.suffers else (),
        cause="input ranges that vary by sample",
        figures=figures,
        threshold=THRESHOLD,
        layers=varying,
    )


def _remedies(examination: Examination) -> tuple[Remedy, ...]:
    """By batch, as torch.ao measures, and by row, as torchao does."""
    return best_of(
        remedy(examination, "dynamic", why="ranges found as each batch runs"),
        remedy(examination, "dynamic", {"backend": "torchao"}, "ranges found for each row as it runs"),
    )
