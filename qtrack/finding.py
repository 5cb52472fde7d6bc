"""What a diagnosis comes to: findings with their evidence, and remedies in the order in which to try them.

Plain data, as it stands in ``diagnosis.json``. The categories are those of PyTorch's guide to quantization
accuracy debugging, and two that it takes for granted: nothing is wrong, and the output is no number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from qtrack.errors import StoreError
from qtrack.recipe import Recipe
from qtrack.statistics import Drop

Category = Literal["healthy", "data-insensitive", "data-sensitive", "implementation", "not finite"]
Severity = Literal["fault", "remark", "fine", "not checked"]
VERSION = 1


@dataclass(frozen=True)
class Figure:
    """One number, or word, of the evidence."""

    name: str
    value: float | str | None
    unit: str = ""


@dataclass(frozen=True)
class Worked:
    """How often a remedy won back half of the loss or more in earlier runs with the same cause."""

    times: int
    tried: int


@dataclass(frozen=True)
class Remedy:
    """A change of the recipe: a stage of a pipeline with its options, and what it is expected to bring."""

    stage: str
    options: Mapping[str, Any] = field(default_factory=dict)
    gain: float = 0.0
    """Share of the lost metric that it is expected to win back, 0 to 1."""
    cost: float = 1.0
    """Expected time, in executions of the diagnosed recipe."""
    why: str = ""
    recipe: Recipe | None = None
    """What the stage makes of the diagnosed recipe; None where it has to search for that."""
    worked: Worked | None = None
    """None where the store knows of no earlier try."""

    @property
    def worth(self) -> float:
        """Expected gain for its cost; what worked earlier counts as two tries more beside the estimate."""
        gain = self.gain
        if self.worked:
            gain = (2 * self.gain + self.worked.times) / (2 + self.worked.tried)
        return gain / max(self.cost, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        recipe = None if self.recipe is None else self.recipe.model_dump(mode="json")
        return {**asdict(replace(self, recipe=None)), "recipe": recipe, "worth": self.worth}


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    severity: Severity
    text: str
    """One line for people."""
    cause: str | None = None
    """Of a fault: what is wrong, in the same words each time."""
    figures: tuple[Figure, ...] = ()
    threshold: str = ""
    """From where on it is a fault, and where that comes from."""
    confidence: float | None = None
    """How sure it is that this is so, 0 to 1."""
    layers: tuple[str, ...] = ()
    """The layers that it is about, worst first."""
    remedies: tuple[Remedy, ...] = ()

    @property
    def gain(self) -> float:
        """Share of the lost metric that its best remedy is expected to win back."""
        return max((remedy.gain for remedy in self.remedies), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {**asdict(replace(self, remedies=())), "remedies": [r.to_dict() for r in self.remedies]}


@dataclass(frozen=True)
class Legs:
    """The metric with one part of the quantization at a time, emulated in float; None where it cannot be."""

    weights: float | None = None
    """Weights alone on integers."""
    activations: float | None = None
    """Activations alone on integers."""
    both: float | None = None
    """Both: the quantized model by its reference arithmetic, without kernels."""


@dataclass(frozen=True)
class Diagnosis:
    """Which kind of error a quantized model has, on what evidence, and what to try next."""

    subject: str
    """What was diagnosed, as the user named it."""
    category: Category
    text: str
    """The verdict, one line for people."""
    metric: str
    float_value: float
    value: float
    drop: Drop
    legs: Legs
    findings: tuple[Finding, ...]
    """Faults first, those with the largest expected gain before others; then remarks, then the rest."""
    remedies: tuple[Remedy, ...]
    """Of all faults, the best worth first, each stage with its options once."""
    seconds: float
    forward_samples: int
    recipe_digest: str
    run_id: str | None = None
    """Of the diagnosed run, where there is one."""

    @property
    def faults(self) -> tuple[Finding, ...]:
        """Findings that say what is wrong."""
        return tuple(finding for finding in self.findings if finding.severity == "fault")

    @property
    def cause(self) -> str | None:
        """The first fault's; None where there is none."""
        return self.faults[0].cause if self.faults else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        plain = asdict(replace(self, findings=(), remedies=()))
        return {
            "version": VERSION,
            **plain,
            "cause": self.cause,
            "findings": [finding.to_dict() for finding in self.findings],
            "remedies": [remedy.to_dict() for remedy in self.remedies],
        }


def diagnosis_from(data: Mapping[str, Any]) -> Diagnosis:
    """Read ``to_dict``'s form again; raises StoreError where it is not one.

    JSON has no NaN or infinity: where a number is null, it is NaN.
    """
    try:
        numbers = {name: _number(data[name]) for name in ("value", "float_value")}
        drop = {name: _number(value) for name, value in data["drop"].items()}
        return _adapter().validate_python({**data, **numbers, "drop": drop})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"not a recorded diagnosis: {_first(error):.250}") from error


def _number(value: Any) -> Any:
    return math.nan if value is None else value


@cache
def _adapter() -> TypeAdapter[Diagnosis]:
    return TypeAdapter(Diagnosis)


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return repr(error)
    fault = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
