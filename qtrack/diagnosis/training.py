"""QAT: what training with fake quantization can be expected to win back. Not measured: it takes too long."""

from __future__ import annotations

from qtrack.diagnosis import kernels
from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import fine, not_checked, static_layers
from qtrack.diagnosis.sensitivity import is_sensitive
from qtrack.errors import RecipeError
from qtrack.finding import Finding, Remedy

CHECK = "QAT"
RULE = "a rule of thumb, not measured: less of an error of few samples, nothing of a kernel's"
INSENSITIVE, SENSITIVE = 0.8, 0.4
COST = 8.0
"""Of four epochs on a small network, in times of the same recipe without training."""


def check(examination: Examination) -> Finding:
    """PyTorch's guide: if you are using PTQ, consider QAT to recover some of the accuracy."""
    if not static_layers(examination):
        return not_checked(CHECK, "it trains static schemes alone")
    if examination.recipe.training:
        return fine(CHECK, "the recipe trains already")
    if not examination.suffers:
        return fine(CHECK, "there is nothing to win back")
    task = examination.task
    missing = [f"{method}()" for method in ("training", "loss") if not task.offers(method)]
    if missing:
        return not_checked(CHECK, f"{type(task).__name__} lacks {' and '.join(missing)}, which it needs")
    gain = (SENSITIVE if is_sensitive(examination) else INSENSITIVE) * (1 - kernels.loss(examination))
    return Finding(
        CHECK,
        "remark",
        f"training with fake quantization can be expected to win back some {100 * gain:.0f}% ({RULE})",
        remedies=_remedies(examination, gain),
    )


def _remedies(examination: Examination, gain: float) -> tuple[Remedy, ...]:
    options = {"epochs": 4, "lr": 1e-4, "freeze_observers": 1}
    try:
        recipe = examination.changed("qat", options)
    except RecipeError:  # a backend or a transform that does not train
        return ()
    why = "train with fake quantization; expected, not measured"
    return (Remedy("qat", options, gain, COST, why, recipe),)
