"""NaN and infinity: outputs that are no numbers, and where they come from."""

from __future__ import annotations

from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import best_of, fine, in_float, judged, named, remedy
from qtrack.finding import Figure, Finding, Remedy

CHECK = "finite outputs"
THRESHOLD = "any sample"
TRIED = 3
"""Layers, the last ones first, that are left in float to see whether the output becomes finite."""
WHY = "leave what feeds it in float"


def check(examination: Examination) -> Finding:
    """NaN is a finding, not a number to average."""
    quantized, floating = examination.quantized.nonfinite, examination.floating.nonfinite
    figures = (
        Figure("validation samples with NaN or infinity", quantized),
        Figure("of the float model's", floating),
    )
    if floating:
        text = f"the float model itself gives NaN or infinity on {floating} validation samples"
        return Finding(
            CHECK, "fault", text, "a float model that is not finite", figures, THRESHOLD, confidence=1.0
        )
    if not quantized:
        return fine(CHECK, "all outputs are numbers", *figures, threshold=THRESHOLD)
    layers = list(examination.compared.nonfinite)
    where = named(layers) if layers else "what follows the last quantized layer"
    suspects = layers[:1] + [layer for layer in reversed([*examination.rows]) if layer not in layers[:1]]
    return judged(
        examination,
        CHECK,
        f"the output is NaN or infinite on {quantized} validation samples; it begins in {where}",
        _remedies(examination, suspects[:TRIED]),
        cause="outputs that are not finite",
        figures=figures,
        threshold=THRESHOLD,
        layers=layers or suspects[:TRIED],
    )


def _remedies(examination: Examination, suspects: list[str]) -> tuple[Remedy, ...]:
    """Each alone, and all of them: a number that became zero may have been lost twice."""
    tried = [[layer] for layer in suspects] + [suspects]
    return best_of(*(remedy(examination, "keep_float", in_float(examination, one), WHY) for one in tried))
