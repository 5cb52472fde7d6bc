"""What the calibration set costs: how much more noise layers have on data that it does not know.

Other samples are tried where that is so; and the metric is taken with random halves of the set, to see if it
depends on which samples were drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from qtrack.backends.engines import using_engine
from qtrack.data import batches_of
from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.inputs import outlying
from qtrack.diagnosis.making import MIN_GAIN, best_of, fine, not_checked, remedy, static_layers
from qtrack.diagnosis.samples import AT_LEAST, OUTLIERS, OVERLAP, SEVERAL, facts
from qtrack.engine import quantize
from qtrack.engine.evaluation import evaluate
from qtrack.finding import Figure, Finding, Remedy
from qtrack.numerics import Comparison
from qtrack.numerics.extent import Extent
from qtrack.statistics import paired_drop

SPREAD = "calibration spread"
UNSEEN = "calibration coverage"
REDRAWN = 3
"""Random halves of the calibration set that are calibrated with."""
WEIGHTS_ALONE = 0.9
"""Of the loss: where weights alone explain so much, the ranges of activations do not matter."""
EXPLAINED = 0.9
"""Of the damage at the output: what a remedy takes away leaves nothing to ask of the samples."""
NARROW = 0.3
"""Of the layers' own noise on validation samples that calibration samples do not have."""


def check(examination: Examination) -> list[Finding]:
    """The audit, and what its faults cost: how much more noise layers have on data that they do not know."""
    if not static_layers(examination):
        return [not_checked("calibration", "no activation has a range fixed by calibration")]
    ranges = _extents(examination.calibrated), _extents(examination.compared)
    found = facts(examination.chosen, examination.spreads, *ranges)
    return _with_remedies(examination, found) if examination.suffers else found


def _with_remedies(examination: Examination, found: list[Finding]) -> list[Finding]:
    """Other samples are tried where layers have more noise on validation samples than on these."""
    found = [_without_outliers(examination, one) if one.check == OUTLIERS else one for one in found]
    narrow = _narrow(examination)
    if narrow < NARROW:
        return found
    figure = Figure("of the layers' own noise is beyond the calibrated ranges", 100 * narrow, "%")
    remedies = tuple(one for one in best_of(*_other_samples(examination)) if one.gain >= MIN_GAIN)
    if not any(_is_to_blame(finding) for finding in found):
        return [*found, _ranges(figure, remedies)]
    return [_costing(finding, figure, remedies) if _is_to_blame(finding) else finding for finding in found]


def _costing(finding: Finding, figure: Figure, remedies: tuple[Remedy, ...]) -> Finding:
    return replace(finding, figures=(*finding.figures, figure), remedies=remedies)


def _is_to_blame(finding: Finding) -> bool:
    """Does the fault make ranges narrow? An overlap does not, and outliers make them wide."""
    return finding.severity == "fault" and finding.check not in (OVERLAP, OUTLIERS)


def _without_outliers(examination: Examination, finding: Finding) -> Finding:
    """A fault where ranges without these samples are tried and help."""
    if finding.severity == "fine":
        return finding
    samples = examination.chosen.calibration.samples
    kept = samples - int(outlying(examination.spreads["calibration"]).sum())
    options = {"choice": "typical", "samples": kept}
    tried = remedy(examination, "calibration", options, "leave out the samples that are unlike the others")
    if tried is None or tried.gain < MIN_GAIN:
        return finding
    return replace(finding, severity="fault", cause="outliers among calibration samples", remedies=(tried,))


def _extents(compared: Comparison) -> dict[str, Extent]:
    rows = compared.rows
    return {row.layer: (row.low, row.high) for row in rows if row.low is not None and row.high is not None}


def _ranges(figure: Figure, remedies: tuple[Remedy, ...]) -> Finding:
    return Finding(
        UNSEEN,
        "fault",
        "validation samples leave the ranges that calibration has seen: calibrate with samples like them",
        cause="outliers that calibration has not seen",
        figures=(figure,),
        threshold=f"{NARROW:.0%} of the layers' own noise on validation samples",
        remedies=remedies,
    )


def _narrow(examination: Examination) -> float:
    """Share of the layers' own noise on validation samples that they do not have on calibration samples."""
    seen = {row.layer: row.own_sqnr_db for row in examination.calibrated.rows}
    known = [
        (10 ** (-row.own_sqnr_db / 10), 10 ** (-(seen[layer] or row.own_sqnr_db) / 10))
        for layer, row in examination.rows.items()
        if row.own_sqnr_db is not None and layer in seen
    ]
    there = sum(noise for noise, _ in known)
    return max(1 - sum(noise for _, noise in known) / there, 0.0) if there else 0.0


def _other_samples(examination: Examination) -> Iterator[Remedy | None]:
    whole = examination.splits["calibration"].samples
    if examination.chosen.calibration.samples < whole:
        yield remedy(examination, "calibration", {"samples": "all"}, "calibrate with all that there are")
    if examination.task.offers("training"):
        options = {"source": "training", "choice": "outlier_inclusive", "samples": 2 * AT_LEAST}
        yield remedy(examination, "calibration", options, "training samples, unusual ones among them")


def spread(examination: Examination) -> Finding:
    """The metric after calibrating with random halves: do the ranges depend on which samples were drawn?"""
    samples = examination.chosen.calibration.samples
    if not examination.suffers or (examination.weight_share or 0.0) > WEIGHTS_ALONE:
        return fine(SPREAD, "ranges of activations are not the trouble")
    if examination.explained > EXPLAINED:
        return not_checked(SPREAD, "another cause explains the loss")
    if samples < 2 * SEVERAL:
        return not_checked(SPREAD, "there are too few samples to draw from")
    task, recipe = examination.task, examination.recipe
    scores = []
    for seed in range(REDRAWN):
        part = recipe.calibration.having(samples=samples // 2, choice="random", seed=seed)
        parts = quantize(task, recipe.having(calibration=part))
        with using_engine(recipe.engine):
            batches = batches_of(task, "validation")
            scores.append(evaluate(task, parts.quantized.model, "validation", batches).scores)
    means = [float(one.mean()) for one in scores]
    best, worst = scores[int(np.argmax(means))], scores[int(np.argmin(means))]
    figures = (
        Figure("halves drawn", REDRAWN),
        Figure("lowest metric", min(means)),
        Figure("highest metric", max(means)),
    )
    threshold = "a difference between halves beyond chance, and beyond half of the loss"
    beyond = paired_drop(best, worst, examination.target.confidence).low > 0
    if not beyond or max(means) - min(means) < examination.lost / 2:
        return fine(SPREAD, "other halves of the set come to the same", *figures, threshold=threshold)
    text = "the metric depends on which samples calibrate"
    return Finding(SPREAD, "remark", text, figures=figures, threshold=threshold)
