"""How checks turn what they measure into findings and remedies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qtrack.diagnosis.examination import Examination
from qtrack.errors import RecipeError
from qtrack.finding import Figure, Finding, Remedy
from qtrack.recipe import Static

MIN_GAIN = 0.2
"""Of the damage at the output that a remedy takes away: with less, what it mends is not the cause."""
SLOWER = 2.0
"""What leaving layers in float costs beside its own time: every later call is slower."""


def remedy(
    examination: Examination, stage: str, options: Mapping[str, Any] | None = None, why: str = ""
) -> Remedy | None:
    """A stage with what it was measured to bring; None where it changes nothing or cannot be carried out."""
    try:
        recipe = examination.changed(stage, options or {})
    except RecipeError:  # no stage for this recipe
        return None
    gain = None if recipe.digest == examination.recipe.digest else examination.gain(recipe)
    if gain is None:
        return None
    cost = examination.cost(recipe) * (SLOWER if stage == "keep_float" else 1.0)
    return Remedy(stage, options or {}, gain, cost, why, recipe)


def in_float(examination: Examination, layers: Sequence[str]) -> dict[str, list[str]]:
    """Names of the layer table as options of ``keep_float``: modules, and calls of functions."""
    modules = dict(examination.model.named_modules())
    plain = [name.partition("#")[0] for name in layers]
    found = {
        "layers": list(dict.fromkeys(name for name in plain if name in modules)),
        "calls": [name for name in layers if name.partition("#")[0] not in modules],
    }
    return {kind: names for kind, names in found.items() if names}


def best_of(*remedies: Remedy | None) -> tuple[Remedy, ...]:
    """Those that there are, the largest gain first."""
    return tuple(sorted(filter(None, remedies), key=lambda one: -one.gain))


def judged(
    examination: Examination,
    check: str,
    text: str,
    remedies: Sequence[Remedy],
    *,
    cause: str,
    figures: Sequence[Figure],
    threshold: str,
    layers: Sequence[str] = (),
) -> Finding:
    """A fault where the model suffers and the remedy was measured to help, a remark where not."""
    helps = [one for one in remedies if one.gain >= MIN_GAIN]
    sure = examination.improved(helps[0].recipe) if helps and helps[0].recipe else None
    return Finding(
        check,
        "fault" if helps else "remark",
        text,
        cause=cause if helps else None,
        figures=tuple(figures),
        threshold=threshold,
        confidence=sure,
        layers=tuple(layers),
        remedies=tuple(helps),
    )


def static_layers(examination: Examination) -> bool:
    """Does the recipe have activations whose ranges are fixed by calibration?"""
    return any(isinstance(scheme, Static) for scheme in examination.recipe.schemes())


def not_checked(check: str, why: str) -> Finding:
    """What could not be looked at, and why."""
    return Finding(check, "not checked", why)


def fine(check: str, text: str, *figures: Figure, threshold: str = "") -> Finding:
    """Nothing to say."""
    return Finding(check, "fine", text, figures=figures, threshold=threshold)


def named(layers: Sequence[str], most: int = 3) -> str:
    """The first few names, for people."""
    more = f" and {len(layers) - most} more" if len(layers) > most else ""
    return ", ".join(layers[:most]) + more
