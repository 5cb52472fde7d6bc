"""Bias: is the rounding error of the weights one that shifts the mean of a layer's output?"""

from __future__ import annotations

from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import best_of, fine, judged, named, remedy
from qtrack.finding import Figure, Finding
from qtrack.numerics.shift import shifts

CHECK = "bias"
SHIFTED = 0.5
THRESHOLD = (
    f"{SHIFTED:.0%} of a layer's own error is a shift of its channels' means (Nagel et al. 2019, section 4.2)"
)


def check(examination: Examination) -> Finding:
    """Whether the error of a layer's weights shifts its output, which a corrected bias takes back."""
    if examination.recipe.applies("correct_bias"):
        return fine(CHECK, "biases are corrected already")
    found = shifts(examination.pair, examination.inputs[0])
    layers = sorted(
        (layer for layer, share in found.items() if share >= SHIFTED), key=lambda one: -found[one]
    )
    figures = (
        Figure("largest share that is a shift", 100 * max(found.values(), default=0.0), "%"),
        Figure("layers beyond the threshold", len(layers)),
    )
    if not layers or not examination.suffers:
        return fine(CHECK, "errors have no direction", *figures, threshold=THRESHOLD)
    return judged(
        examination,
        CHECK,
        f"the error shifts the outputs of {named(layers)}",
        best_of(remedy(examination, "bias_correction", why="take the weights' mean error off the biases")),
        cause="biased rounding of weights",
        figures=figures,
        threshold=THRESHOLD,
        layers=layers,
    )
