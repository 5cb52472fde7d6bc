"""The precision ladder: what would each step up cost and bring, for the layers that have most of the error?

PyTorch's guide: float32 is most accurate, then float16, dynamic int8, static int8; conversions between types
cost time of their own. Each rung of a layer is run on its recorded inputs and timed with the conversions at
its borders, so that a float layer between integer ones pays for two.
"""

from __future__ import annotations

from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import best_of, fine, in_float, named, not_checked, remedy
from qtrack.finding import Figure, Finding, Remedy
from qtrack.numerics.rungs import Rung, rungs_of
from qtrack.search.fewest import most_evaluations

CHECK = "precision"
HALF = 0.5
WORST = 3
THRESHOLD = "the fewest layers that make up half of all layers' own noise"


def check(examination: Examination) -> Finding:
    """The rungs of the layers with the largest own error."""
    layers = _sources(examination)
    if not layers:
        return not_checked(CHECK, "no layer has an error of its own")
    found = rungs_of(examination.pair, layers[:WORST], examination.inputs[0])
    figures = tuple(map(_figure, found))
    text = f"half of the layers' own noise comes from {named(layers)}"
    if not examination.suffers:
        return fine(CHECK, text, *figures, threshold=THRESHOLD)
    return Finding(
        CHECK,
        "remark",
        text,
        figures=figures,
        threshold=THRESHOLD,
        layers=tuple(layers),
        remedies=_remedies(examination, layers),
    )


def _sources(examination: Examination) -> list[str]:
    """Layers with weights, the worst first, until half of the own noise is theirs."""
    rows = [row for row in examination.rows.values() if row.own_sqnr_db is not None]
    noise = {row.layer: 10 ** (-(row.own_sqnr_db or 0.0) / 10) for row in rows}
    total, found = sum(noise.values()), list[str]()
    for layer in sorted(noise, key=lambda name: -noise[name]):
        if sum(noise[name] for name in found) >= HALF * total:
            break
        found.append(layer)
    return found


def _remedies(examination: Examination, layers: list[str]) -> tuple[Remedy, ...]:
    params = {row.layer for row in examination.rows.values() if row.params}
    kept = [layer for layer in layers if layer in params][:WORST]
    direct = remedy(examination, "keep_float", in_float(examination, kept), "leave the worst layers in float")
    count = len(params)
    search = Remedy(
        "fallback",
        {},
        0.9,
        1.0 + count.bit_length(),
        f"search for the fewest layers in float, in at most {most_evaluations(count)} evaluations; expected",
    )
    return best_of(direct if kept else None, search)


def _figure(rung: Rung) -> Figure:
    error = "exact" if rung.sqnr_db is None else f"{rung.sqnr_db:.1f} dB"
    return Figure(f"{rung.layer} in {rung.dtype}", f"{error} in {rung.milliseconds:.3f} ms")
