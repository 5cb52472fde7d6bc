"""What differs between two recorded stages: what went in, what came out, and what the metric made of it.

Ingredients are grouped by the first part of their names. What merely follows from something else is left out:
the digest of the recipe and its engine (the recipes are compared field by field), the training data where not
both stages train, and their order where another seed shuffles them.

A layer has moved where scales or weights under its name part, where it runs in another type, or where its
own SQNR changed by MOVED_DB or more. A float stage has no layer table: against it only the type counts.
Samples and metric are paired only where both stages were validated on the same samples in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from qtrack.ingredients import ABSENT, Drift, drifted
from qtrack.recipe import Recipe
from qtrack.recipe_diff import Changed, changed_fields
from qtrack.reproduction import Recorded, differing_samples, parted_layers
from qtrack.sources import NONE
from qtrack.statistics import Scores, paired_drop

MOVED_DB = 0.05
Way = Literal["better", "worse", "other"]
WAYS: tuple[Way, ...] = ("better", "worse", "other")
GROUPS = {"data": "data", "float_weights": "weights", "source": "code"}
"""The group that the first part of an ingredient's name belongs to; all others are the environment's."""


@dataclass(frozen=True)
class Side:
    """One of the two stages."""

    run_id: str
    stage: str
    metric: str
    value: float
    samples: int


@dataclass(frozen=True)
class Group:
    """Ingredients of one kind, under both stages."""

    differ: tuple[Drift, ...]
    equal: tuple[str, ...]
    unrecorded: tuple[str, ...]
    """Names that only one record has something to say about."""


@dataclass(frozen=True)
class MovedLayer:
    """A layer that is not the same in both; None on a side that says nothing about it."""

    layer: str
    dtype: tuple[str | None, str | None]
    own_sqnr_db: tuple[float | None, float | None]
    own_sqnr_db_change: float | None
    parted: bool
    """Do scales or weights under its name differ? FX keeps those of functions under names of its own."""


@dataclass(frozen=True)
class Flip:
    """A validation sample with another prediction or score."""

    index: int
    label: int | None
    way: Way
    """``other``: another prediction with the same score."""
    predictions: tuple[int, int] | None
    scores: tuple[float, float]


@dataclass(frozen=True)
class Shift:
    """Change of a metric on the same samples, positive where it got better, with its paired interval."""

    change: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Two recorded stages, compared."""

    first: Side
    second: Side
    recipe: tuple[Changed, ...]
    ingredients: Mapping[str, Group]
    """By group: data, weights, code, environment."""
    parameters_equal: bool
    behaviour_equal: bool
    layers: tuple[MovedLayer, ...]
    """Those whose type changed first, then by the change of their own SQNR."""
    unpaired: str
    """Why samples and metric cannot be compared; empty where they can."""
    flips: tuple[Flip, ...]
    shift: Shift | None

    @property
    def equal(self) -> bool:
        """Is there nothing on record in which the two differ?"""
        results = self.parameters_equal and self.behaviour_equal and self.first.value == self.second.value
        return results and not (self.recipe or self.drifts or self.layers or self.flips)

    @property
    def drifts(self) -> tuple[Drift, ...]:
        """Ingredients of all groups that differ."""
        return tuple(drift for group in self.ingredients.values() for drift in group.differ)

    @property
    def unrecorded(self) -> tuple[str, ...]:
        """Ingredients of all groups that one record says nothing about."""
        return tuple(name for group in self.ingredients.values() for name in group.unrecorded)

    @property
    def titles(self) -> tuple[str, str]:
        """What the two are called where they stand beside each other."""
        sides = self.first, self.second
        same = self.first.stage == self.second.stage
        first, second = (f"{side.stage} {side.run_id[:8]}" if same else side.stage for side in sides)
        return first, second

    def flipped(self, way: Way) -> tuple[Flip, ...]:
        """Samples that flipped this way, in the split's order."""
        return tuple(flip for flip in self.flips if flip.way == way)

    def by_class(self) -> dict[int, dict[Way, int]]:
        """How many samples flipped which way by label, the class with most flips first."""
        counts: dict[int, dict[Way, int]] = {}
        for flip in self.flips:
            if flip.label is not None:
                of_class = counts.setdefault(flip.label, dict.fromkeys(WAYS, 0))
                of_class[flip.way] += 1
        return dict(sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0])))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        groups = {
            name: asdict(group) | {"differ": [drift._asdict() for drift in group.differ]}
            for name, group in self.ingredients.items()
        }
        return asdict(self) | {
            "equal": self.equal,
            "recipe": [changed._asdict() for changed in self.recipe],
            "ingredients": groups,
            "by_class": {str(label): counts for label, counts in self.by_class().items()},
        }


def difference(first: Recorded, second: Recorded, pairs: Sequence[Mapping[str, Any]]) -> Difference:
    """Compare two stages; ``pairs`` are their layer tables, paired by name."""
    unpaired = why_unpaired(first, second)
    was, now = first.result, second.result
    return Difference(
        first=side_of(first),
        second=side_of(second),
        recipe=tuple(changed_fields(first.recipe, second.recipe)),
        ingredients=_groups(first, second),
        parameters_equal=_same_parameters(first, second),
        behaviour_equal=was.behaviour == now.behaviour,
        layers=tuple(_moved(first, second, pairs)),
        unpaired=unpaired,
        flips=() if unpaired else tuple(_flips(first, second)),
        shift=None if unpaired else shift(was.scores, now.scores),
    )


def shift(was: Scores, now: Scores) -> Shift:
    """The change of the mean score; raises ValueError where the samples are not as many."""
    drop = paired_drop(was, now)
    return Shift(0.0 - drop.value, 0.0 - drop.high, 0.0 - drop.low)


def side_of(recorded: Recorded) -> Side:
    """A recorded stage as one of two."""
    result = recorded.result
    return Side(recorded.run_id, recorded.stage, recorded.metric, result.value, len(result.scores))


def _groups(first: Recorded, second: Recorded) -> dict[str, Group]:
    names = [name for name in _names(first, second) if not _follows(name, first.recipe, second.recipe)]
    silent = {name for name in names if None in (_value(first, name), _value(second, name))}
    told = [name for name in names if name not in silent]
    differ = drifted(*({name: str(_value(side, name)) for name in told} for side in (first, second)))
    unequal = {name for name in told if _value(first, name) != _value(second, name)}
    return {
        group: Group(
            tuple(drift for drift in differ if _group(drift.name) == group),
            tuple(name for name in told if name not in unequal and _group(name) == group),
            tuple(name for name in names if name in silent and _group(name) == group),
        )
        for group in (*GROUPS.values(), "environment")
    }


def _names(first: Recorded, second: Recorded) -> list[str]:
    return list(dict.fromkeys((*first.ingredients, *second.ingredients)))


def _group(name: str) -> str:
    return GROUPS.get(name.partition(".")[0], "environment")


def _follows(name: str, first: Recipe, second: Recipe) -> bool:
    """Is this ingredient as it is because of the recipe?"""
    if name.startswith("data.training."):
        shuffled = name.endswith((".order", ".labels")) and first.training_seed != second.training_seed
        return shuffled or not (first.reads_training and second.reads_training)
    return name == "recipe" or (name == "engine" and first.engine != second.engine)


def _value(recorded: Recorded, name: str) -> str | None:
    """As recorded; a split that a complete record does not have is none, the device the CPU.

    Anything else that is absent is not known.
    """
    if (name.startswith("data.") or name in ABSENT) and "source.task" in recorded.ingredients:
        return recorded.ingredients.get(name, ABSENT.get(name, NONE))
    return recorded.ingredients.get(name)


def _moved(first: Recorded, second: Recorded, pairs: Sequence[Mapping[str, Any]]) -> Iterator[MovedLayer]:
    parted = _parted(first, second)
    if not pairs:
        yield from (MovedLayer(name, ("float32", "float32"), (None, None), None, True) for name in parted)
    for pair in pairs:
        dtype = _type(first, pair["dtype"][0]), _type(second, pair["dtype"][1])
        own, change = (pair["own_sqnr_db"][0], pair["own_sqnr_db"][1]), pair["own_sqnr_db_change"]
        changed = (own[0] is None) != (own[1] is None) or abs(change or 0.0) >= MOVED_DB
        if changed or dtype[0] != dtype[1] or pair["layer"] in parted:
            yield MovedLayer(pair["layer"], dtype, own, change, pair["layer"] in parted)


def _parted(first: Recorded, second: Recorded) -> tuple[str, ...]:
    """Between a float and a quantized network names mean nothing: weights are fused, BatchNorms are gone."""
    if _same_parameters(first, second) or first.recipe.quantizes != second.recipe.quantizes:
        return ()
    known = dict.fromkeys((*first.layers, *second.layers))
    return parted_layers(first.result, second.result, tuple(known))


def _type(recorded: Recorded, dtype: str | None) -> str | None:
    return dtype if recorded.recipe.quantizes else "float32"


def _same_parameters(first: Recorded, second: Recorded) -> bool:
    return first.result.parameters == second.result.parameters


def why_unpaired(first: Recorded, second: Recorded) -> str:
    """Why their samples cannot be paired; empty where they can."""
    orders = [side.ingredients.get("data.validation.order") for side in (first, second)]
    if first.metric != second.metric:
        return f"not comparable: one is {first.metric}, the other {second.metric}"
    if None in orders:
        return "not comparable: which samples validation held is not recorded"
    if orders[0] != orders[1] or len(first.result.scores) != len(second.result.scores):
        return "not comparable: validation held other samples, or the same in another order"
    return ""


def _flips(first: Recorded, second: Recorded) -> Iterator[Flip]:
    was, now = first.result, second.result
    for index in np.flatnonzero(differing_samples(was, now)).tolist():
        before, after = float(was.scores[index]), float(now.scores[index])
        yield Flip(
            index,
            None if first.labels is None else int(first.labels[index]),
            "better" if after > before else "worse" if after < before else "other",
            _two_predictions(first, second, index),
            (before, after),
        )


def _two_predictions(first: Recorded, second: Recorded, index: int) -> tuple[int, int] | None:
    was, now = first.result.predictions, second.result.predictions
    return None if was is None or now is None else (int(was[index]), int(now[index]))
