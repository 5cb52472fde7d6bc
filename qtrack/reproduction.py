"""Is what an execution gives again the same? Three answers, from what is on record of the first.

* ``bit-identical``: the digest of parameters (weights, scales, zero-points) and that of behaviour (outputs on
  the validation split) are equal.
* ``equivalent``: every validation sample has the same prediction and score, scales differ by at most
  TOLERANCE relative to the recorded ones, zero-points by at most one step. Scores count as the same within
  TOLERANCE as well, because they need not be counts.
* ``different``: anything else; the first layer in execution order whose scales or weights part is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qtrack.engine.digests import tensor_digests
from qtrack.ingredients import Drift, drifted, unrecorded
from qtrack.outcome import Outcome
from qtrack.recipe import Recipe

TOLERANCE = 1e-3
TINY = 1e-9
Verdict = Literal["bit-identical", "equivalent", "different"]
_QUANTIZER = re.compile(r"_(input_)?(scale|zero_point)_\d+$")


class Result(NamedTuple):
    """What an execution came to, as far as it is compared."""

    parameters: str
    behaviour: str
    scales: Mapping[str, Any]
    tensors: Mapping[str, str]
    """A digest of each parameter; empty on records of older versions."""
    value: float
    scores: NDArray[np.float64]
    predictions: NDArray[np.int64] | None


@dataclass(frozen=True, eq=False)
class Recorded:
    """All of a recorded stage that reproducing it needs."""

    run_id: str
    stage: str
    metric: str
    recipe: Recipe
    ingredients: Mapping[str, str]
    result: Result
    layers: tuple[str, ...]
    """In execution order."""
    labels: NDArray[np.int64] | None = None
    """Of the validation samples."""

    @property
    def threads(self) -> int | None:
        """As recorded; None where that is not known."""
        text = self.ingredients.get("threads", "")
        return int(text) if re.fullmatch(r"[1-9]\d{0,3}", text, re.ASCII) else None

    @property
    def device(self) -> str:
        """The kind of device that floats were computed on: cpu or cuda."""
        return "cuda" if self.ingredients.get("device", "").startswith("cuda") else "cpu"


@dataclass(frozen=True)
class Reproduction:
    """How a second execution compares with the recorded one."""

    run_id: str
    """Of the recorded stage."""
    stage: str
    verdict: Verdict
    metric: str
    value: float
    recorded_value: float
    parameters_equal: bool
    behaviour_equal: bool
    differing_samples: int
    """Validation samples with another prediction or score; all of them where their number changed."""
    scale_difference: float | None
    """Largest relative difference of a scale; None where the two have not the same scales."""
    zero_point_difference: float | None
    """Largest difference of a zero-point, in steps; None likewise."""
    parted_layers: tuple[str, ...]
    """Layers whose scales or weights differ, in execution order."""
    ingredients: tuple[str, ...]
    """Names of all that were checked."""
    drifted: tuple[Drift, ...]
    restored: tuple[Drift, ...]
    """What is otherwise here, and was set as recorded for this execution: the number of threads."""
    unrecorded: tuple[str, ...]
    """Ingredients that the record says nothing about."""
    tolerance: float = TOLERANCE
    reproduction_run: str = ""
    """The id of the run that holds this comparison."""

    @property
    def holds(self) -> bool:
        """Bit-identical or equivalent."""
        return self.verdict != "different"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        changes = {
            name: [drift._asdict() for drift in getattr(self, name)] for name in ("drifted", "restored")
        }
        return asdict(self) | changes


@dataclass(frozen=True)
class Unproven:
    """A recorded stage that could not be executed again, or compared."""

    run_id: str
    stage: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Made:
    """What an execution came to where nothing is recorded that it could be compared with."""

    recipe: str
    """Digests, as ``fingerprint.json`` of a recorded stage holds them."""
    parameters: str
    behaviour: str
    metric: str
    value: float
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; that there is no verdict tells it from a Reproduction."""
        return asdict(self) | {"verdict": None}


def made_of(outcome: Outcome) -> Made:
    """The digests and the metric of an execution in memory."""
    return Made(
        outcome.recipe.digest,
        outcome.digests["parameters"],
        outcome.digests["behaviour"],
        outcome.metric,
        outcome.value,
        len(outcome.validation.scores),
    )


def result_of(outcome: Outcome) -> Result:
    """What is compared of an execution in memory."""
    return Result(
        outcome.digests["parameters"],
        outcome.digests["behaviour"],
        outcome.qparams,
        tensor_digests(outcome.model.state_dict()),
        outcome.value,
        outcome.validation.scores,
        outcome.validation.predictions,
    )


def compared(recorded: Recorded, now: Result, ingredients: Mapping[str, str], threads: int) -> Reproduction:
    """The recorded stage against a second execution, which began in a process with so many threads."""
    was = recorded.result
    same = was.parameters == now.parameters, was.behaviour == now.behaviour
    differing = int(differing_samples(was, now).sum())
    scales, zero_points = _scales(was, now), _zero_points(was, now)
    verdict: Verdict = "different"
    if all(same):
        verdict = "bit-identical"
    elif differing == 0 and _within(scales, TOLERANCE) and _within(zero_points, 1):
        verdict = "equivalent"
    restored = [Drift("threads", str(recorded.threads), str(threads))]
    return Reproduction(
        run_id=recorded.run_id,
        stage=recorded.stage,
        verdict=verdict,
        metric=recorded.metric,
        value=now.value,
        recorded_value=was.value,
        parameters_equal=same[0],
        behaviour_equal=same[1],
        differing_samples=differing,
        scale_difference=scales,
        zero_point_difference=zero_points,
        parted_layers=() if same[0] else parted_layers(was, now, recorded.layers),
        ingredients=tuple(ingredients),
        drifted=tuple(drifted(recorded.ingredients, ingredients)),
        restored=tuple(restored if recorded.threads not in (None, threads) else ()),
        unrecorded=tuple(unrecorded(recorded.ingredients, ingredients)),
    )


def _within(difference: float | None, limit: float) -> bool:
    return difference is not None and difference <= limit


def differing_samples(was: Result, now: Result) -> NDArray[np.bool_]:
    """Samples with another prediction or score; all of them where their number changed."""
    if len(was.scores) != len(now.scores):
        return np.ones(max(len(was.scores), len(now.scores)), bool)
    differ = ~np.isclose(now.scores, was.scores, rtol=TOLERANCE, atol=TINY, equal_nan=True)
    if was.predictions is not None and now.predictions is not None:
        if len(was.predictions) != len(now.predictions):
            return np.ones(len(differ), bool)
        if len(was.predictions) == len(differ):
            differ |= was.predictions != now.predictions
    return differ


def _difference(was: Mapping[str, Any], now: Mapping[str, Any], *, relative: bool) -> float | None:
    """The largest difference between numbers of the same names; None where these or their shapes differ."""
    if was.keys() != now.keys():
        return None
    largest = 0.0
    for name in was:
        first, second = np.asarray(was[name], float), np.asarray(now[name], float)
        if first.shape != second.shape:
            return None
        difference = np.abs(second - first) / (np.maximum(np.abs(first), TINY) if relative else 1.0)
        if not np.isfinite(difference).all():
            return None
        largest = max(largest, float(difference.max(initial=0.0)))
    return largest


def _of_kind(scales: Mapping[str, Any], *, zero_points: bool) -> dict[str, Any]:
    return {name: value for name, value in scales.items() if ("zero_point" in name) == zero_points}


def _zero_points(was: Result, now: Result) -> float | None:
    sides = (_of_kind(side.scales, zero_points=True) for side in (was, now))
    return _difference(*sides, relative=False)


def _scales(was: Result, now: Result) -> float | None:
    sides = (_of_kind(side.scales, zero_points=False) for side in (was, now))
    return _difference(*sides, relative=True)


def parted_layers(was: Result, now: Result, layers: Sequence[str]) -> tuple[str, ...]:
    """Layers whose scales or weights differ, in execution order; what belongs to none has its own name."""
    known, names = layers or _modules(now.tensors), dict.fromkeys(_differing(was, now))
    ranked = sorted((_place(name, known) for name in names), key=lambda place: place[0])
    return tuple(dict.fromkeys(layer for _, layer in ranked))


def _differing(was: Result, now: Result) -> Iterator[str]:
    """Names of parameters, scales and zero-points that are not the same on both sides."""
    if was.tensors and now.tensors:
        yield from (n for n in (*was.tensors, *now.tensors) if was.tensors.get(n) != now.tensors.get(n))
    yield from (n for n in (*was.scales, *now.scales) if was.scales.get(n) != now.scales.get(n))


def _modules(tensors: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))


def _place(name: str, layers: Sequence[str]) -> tuple[float, str]:
    """Rank in execution order, and layer: the one that holds the parameter, or that a quantizer stands by.

    FX calls the quantizer at the entrance of ``block.conv`` ``block_conv_input_scale_0``, and one of a
    function in ``block`` ``block_scale_0``: that comes where the last layer in ``block`` does.
    """
    quantizer = _QUANTIZER.search(name)
    if quantizer is None:
        holders = [i for i, layer in enumerate(layers) if name.startswith(f"{layer}.") or name == layer]
        if holders:
            chosen = max(holders, key=lambda i: len(layers[i]))
            return chosen, layers[chosen]
        return len(layers), name
    base = name[: quantizer.start()]
    flat = [layer.replace(".", "_") for layer in layers]
    if base in flat:
        return flat.index(base), layers[flat.index(base)]
    inside = [i for i, layer in enumerate(flat) if base and layer.startswith(f"{base}_")]
    return (max(inside) + 0.5 if inside else len(layers)), name
