"""Reduced range: can the engine's accumulators overflow, do they, and does the recipe guard against it?"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from qtrack.backends.engines import using_engine
from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import fine, not_checked
from qtrack.environment import cpu_model, has_vnni, may_saturate
from qtrack.finding import Figure, Finding
from qtrack.numerics import Pair, Site
from qtrack.numerics.lockstep import Lockstep
from qtrack.numerics.saturation import saturating_pairs
from qtrack.recipe import Static

CHECK = "reduce_range"
MAY_OVERFLOW = ("fbgemm", "x86")
THRESHOLD = (
    "PyTorch's guide: False on processors with VNNI (Cooper Lake or newer), else True; with fbgemm always, "
    "whose depthwise kernel adds up in 16 bits"
)


def check(examination: Examination) -> Finding:
    """PyTorch's guide: reduce_range fits the processor and the engine."""
    recipe = examination.recipe
    if recipe.engine not in MAY_OVERFLOW:
        return fine(CHECK, f"{recipe.engine or recipe.backend} adds in 32 bits", threshold=THRESHOLD)
    static = [scheme for scheme in recipe.schemes() if isinstance(scheme, Static)]
    if not static:
        return not_checked(CHECK, "no activation is held in a fixed range")
    reduced = all(scheme.activation.reduce_range for scheme in static)
    fits = reduced is may_saturate(recipe.engine)
    figures = (Figure("processor", cpu_model()), Figure("VNNI", "yes" if has_vnni() else "no"))
    if fits:
        return fine(CHECK, f"{_word(reduced)} fits {recipe.engine} here", *figures, threshold=THRESHOLD)
    why = "gives up a bit for nothing" if reduced else "lets 16-bit accumulators overflow"
    text = f"{_word(reduced)} {why} with {recipe.engine} on this processor"
    return Finding(CHECK, "remark", text, figures=figures, threshold=THRESHOLD)


def saturating(examination: Examination, layers: Sequence[str]) -> float | None:
    """Share of the products of these layers that overflow in pairs, the largest; None where none does.

    Counted on the integers of one batch, whether or not the engine adds in 16 bits on this processor.
    """
    recipe = examination.recipe
    if recipe.engine not in MAY_OVERFLOW:
        return None
    shares = [share for share in _shares(examination, layers) if share]
    return max(shares, default=None)


def _shares(examination: Examination, layers: Collection[str]) -> list[float]:
    sites = tuple(site for site in examination.pair.sites if site.layer in layers)
    pair = Pair(examination.pair.reference, examination.pair.actual, sites)
    found: list[float] = []
    with torch.inference_mode(), using_engine(examination.recipe.engine):
        for meeting in Lockstep([pair]).run(examination.inputs[0]):
            integers = _integer_weight(examination, meeting.site)
            inputs = meeting.actual.inputs
            if integers is None or not inputs or not inputs[0].is_quantized:
                continue
            module = examination.model.get_submodule(meeting.site.layer.partition("#")[0])
            share = saturating_pairs(module, inputs[0].int_repr(), integers)
            found += [] if share is None else [share]
    return found


def _integer_weight(examination: Examination, site: Site) -> Tensor | None:
    """The weight as the kernel holds it; None for a layer without."""
    scale = examination.parts.quantized.qparams.get(f"{site.layer}.weight.scale")
    if site.actual_weight is None or scale is None:
        return None
    weight = site.actual_weight.detach().float()
    return torch.round(weight / torch.tensor(scale).float().reshape(-1, *[1] * (weight.dim() - 1)))


def _word(reduced: bool) -> str:
    return "reduce_range" if reduced else "the full range"
