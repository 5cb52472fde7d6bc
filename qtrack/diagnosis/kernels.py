"""The implementation: does each integer kernel compute what its reference does, and what does that cost?"""

from __future__ import annotations

from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import MIN_GAIN, fine, in_float, judged, named, not_checked, remedy
from qtrack.diagnosis.saturation import saturating
from qtrack.finding import Figure, Finding, Remedy
from qtrack.numerics.kernels import ROUNDING, SEVERAL, KernelError
from qtrack.statistics import paired_drop

CHECK = "kernels"
THRESHOLD = (
    f"{ROUNDING} steps squared, or {SEVERAL} steps anywhere; less is expected of kernels that accumulate in "
    "integers (PyTorch's guide), and nothing of those that only move them"
)
SATURATION = "saturating accumulators"
WHY_REDUCED = "one bit less, so that nothing overflows"
WRONG = "a kernel that differs from its reference"


def check(examination: Examination) -> Finding:
    """Each kernel against its reference on equal integers, in steps of the output's scale."""
    errors = examination.kernels
    if errors is None:
        return not_checked(CHECK, f"{examination.recipe.backend} has no reference form of this model")
    if not errors:
        return not_checked(CHECK, "no layer gives integers")
    worst = max(errors, key=lambda error: error.energy)
    wrong = sorted((error for error in errors if error.differs), key=lambda error: -error.energy)
    if not wrong:
        text = f"{len(errors)} kernels do what their reference does"
        return fine(CHECK, text, *_figures(worst), threshold=THRESHOLD)
    return _differing(examination, wrong)


def loss(examination: Examination) -> float:
    """Share of the lost metric that is gone between the reference arithmetic and the kernels; 0 if chance."""
    both = examination.legs.get("both")
    if both is None or not examination.lost:
        return 0.0
    drop = paired_drop(both.scores, examination.quantized.scores, examination.target.confidence)
    return min(drop.value / examination.lost, 1.0) if drop.low > 0 else 0.0


def _differing(examination: Examination, wrong: list[KernelError]) -> Finding:
    names = [error.layer for error in wrong]
    overflow = saturating(examination, names)
    remedies = _remedies(examination, names, overflows=bool(overflow)) if examination.suffers else ()
    saturates = bool(overflow) and (not remedies or remedies[0].stage == "reduce_range")
    figures = [*_figures(wrong[0]), Figure("layers that differ", len(wrong))]
    figures += [Figure("of the loss is the kernels'", 100 * loss(examination), "%")]
    if overflow:
        figures.append(Figure(f"pairs of products that overflow in {names[0]}", 100 * overflow, "%"))
    text = f"{'16-bit accumulators overflow' if saturates else 'the kernel differs from its reference'} in "
    return judged(
        examination,
        CHECK,
        text + named(names),
        remedies,
        cause=SATURATION if saturates else WRONG,
        figures=figures,
        threshold=THRESHOLD,
        layers=names,
    )


def _remedies(examination: Examination, names: list[str], *, overflows: bool) -> tuple[Remedy, ...]:
    """What mends overflows is first where it helps: a kernel that is wrong otherwise is wrong with 7 bits."""
    kept = remedy(examination, "keep_float", in_float(examination, names), "leave what goes wrong in float")
    reduced = remedy(examination, "reduce_range", {"on": True}, WHY_REDUCED) if overflows else None
    helps = reduced is not None and reduced.gain >= MIN_GAIN
    return tuple(filter(None, [reduced, kept] if helps else [kept]))


def _figures(error: KernelError) -> tuple[Figure, ...]:
    return (
        Figure(f"elements of {error.layer} that differ", 100 * error.differing, "%"),
        Figure("largest difference", error.largest, "steps"),
        Figure("mean squared difference", error.energy, "steps^2"),
    )
