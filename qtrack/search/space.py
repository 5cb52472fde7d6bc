"""The choices that a recipe leaves open, and the recipes that they lead to.

A point of the space is plain data: a value for each choice that takes effect there. The values of the recipe
that a search starts from are always among those to choose from, and lead back to that very recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import ValidationError

from qtrack.backends.capabilities import faults
from qtrack.errors import RecipeError
from qtrack.recipe import MovingAverage, Percentile, Recipe, Static, TransformKind

Part = Literal[
    "observer", "granularity", "calibration", "equalize", "bias_correction", "reduce_range", "training"
]
Params = Mapping[str, Any]

REDUCING = ("x86", "fbgemm")
"""Engines whose defaults in torch give up a bit of the activations."""
FACTORS = (1.0, 0.1, 0.3, 3.0, 10.0)
"""Of the learning rate that the search starts from."""


@dataclass(frozen=True, eq=False)
class Choice:
    """One thing to choose, where the other choices of a point make it take effect."""

    part: Part
    name: str
    values: tuple[Any, ...]
    read: Callable[[Recipe], Any]
    write: Callable[[Recipe, Any], Recipe]
    where: Callable[[Params], bool] = lambda params: True


Space = tuple[Choice, ...]


def space_of(recipe: Recipe, parts: Sequence[Part] | None = None) -> Space:
    """What there is to choose around a recipe, of these parts or of all.

    Raises RecipeError where it does not quantize, or one of the parts is nothing to choose.
    """
    if not recipe.quantizes:
        raise RecipeError("there is nothing to search: start from a stage that quantizes, such as ptq")
    whole = [choice for choice in map(_open(recipe), _choices(recipe)) if len(choice.values) > 1]
    there = dict.fromkeys(choice.part for choice in whole)
    if parts is None:
        return tuple(whole)
    idle = [part for part in parts if part not in there]
    if idle or not parts:
        named = f"{', '.join(idle)} cannot be chosen here" if idle else "it is empty"
        raise RecipeError(f"space: {named}; this recipe leaves open {', '.join(there)}")
    return tuple(choice for choice in whole if choice.part in parts)


def recipe_at(space: Space, start: Recipe, params: Params) -> Recipe | None:
    """The recipe at a point; None where there is none that its backend carries out."""
    recipe = start
    try:
        for choice in space:
            if choice.name in params and params[choice.name] != choice.read(recipe):
                recipe = choice.write(recipe, params[choice.name])
    except ValidationError:
        return None
    return None if faults(recipe) else recipe


def has_same_choices(recipe: Recipe, start: Recipe) -> bool:
    """Is it of the same kind: static or not, training or not?"""
    mine, its = ([choice.name for choice in _choices(one)] for one in (recipe, start))
    return mine == its


def point_of(space: Space, recipe: Recipe, start: Recipe) -> Params:
    """Where a recipe of the same choices stands, and ``start`` in what the space does not hold of it."""
    params: dict[str, Any] = {}
    for choice in space:
        if choice.where(params):
            found = choice.read(recipe)
            params[choice.name] = found if found in choice.values else choice.read(start)
    return params


def plain_space(space: Space) -> list[list[Any]]:
    """Equal ones have the same points."""
    return [[choice.name, *choice.values] for choice in space]


def _open(start: Recipe) -> Callable[[Choice], Choice]:
    """A choice with the values that the backend carries out, the start's own first."""

    def narrowed(choice: Choice) -> Choice:
        values = dict.fromkeys((choice.read(start), *choice.values))
        possible = (value for value in values if recipe_at((choice,), start, {choice.name: value}))
        return replace(choice, values=tuple(possible))

    return narrowed


def _choices(recipe: Recipe) -> list[Choice]:
    """All that this kind of recipe has."""
    found = [_granularity(), _transform("equalize", "equalize")]
    if any(isinstance(scheme, Static) for scheme in recipe.schemes()):
        found += [*_observers(), *_calibration()]
        found += [_reduce_range()] if recipe.engine in REDUCING else []
    if recipe.training:
        return found + _training(recipe.training.epochs, recipe.training.lr)
    return [*found, _transform("bias_correction", "correct_bias")]


def _granularity() -> Choice:
    def read(recipe: Recipe) -> Any:
        weights = (scheme.weight.granularity for scheme in recipe.schemes() if hasattr(scheme, "weight"))
        return next(weights, "per_tensor")

    def write(recipe: Recipe, value: Any) -> Recipe:
        return recipe.with_weights(granularity=value)

    return Choice("granularity", "granularity", ("per_tensor", "per_channel"), read, write)


def _transform(part: Part, kind: TransformKind) -> Choice:
    def write(recipe: Recipe, value: Any) -> Recipe:
        if value:
            return recipe.with_transform(kind)
        return recipe.having(transforms=[one for one in recipe.transforms if one.kind != kind])

    return Choice(part, part, (False, True), lambda recipe: recipe.applies(kind), write)


def _observers() -> list[Choice]:
    kinds = ("histogram", "min_max", "percentile", "moving_average")

    def observer(name: str, values: tuple[Any, ...], like: Percentile | MovingAverage) -> Choice:
        def own(recipe: Recipe) -> Any:
            found = _activation(recipe).observer
            return found if found.kind == like.kind else like

        def write(recipe: Recipe, value: Any) -> Recipe:
            return recipe.with_activations(observer=own(recipe).having(**{name: value}))

        return Choice(
            *("observer", name, values, lambda recipe: getattr(own(recipe), name), write),
            where=lambda params: params.get("observer") == like.kind,
        )

    return [
        Choice(
            *("observer", "observer", kinds, lambda recipe: _activation(recipe).observer.kind),
            lambda recipe, value: recipe.with_activations(observer=value),
        ),
        observer("quantile", (0.9999, 0.99, 0.999, 0.99999), Percentile()),
        observer("averaging_constant", (0.01, 0.1), MovingAverage()),
    ]


def _reduce_range() -> Choice:
    def write(recipe: Recipe, value: Any) -> Recipe:
        return recipe.with_activations(reduce_range=value)

    return Choice(
        *("reduce_range", "reduce_range", (False, True), lambda r: _activation(r).reduce_range, write)
    )


def _activation(recipe: Recipe) -> Any:
    """Of the first static scheme, which stands for all."""
    return next(scheme.activation for scheme in recipe.schemes() if isinstance(scheme, Static))


def _calibration() -> list[Choice]:
    kinds = ("first", "random", "class_balanced", "outlier_inclusive", "typical")
    return [
        _field("calibration", "calibration", "samples", (None, 16, 64, 256)),
        _field(
            "calibration", "calibration", "choice", kinds, lambda params: params.get("samples") is not None
        ),
    ]


def _training(epochs: int, lr: float) -> list[Choice]:
    fields: dict[str, tuple[Any, ...]] = {
        "epochs": tuple(dict.fromkeys((epochs, max(1, epochs // 2), 2 * epochs))),
        "lr": tuple(lr * factor for factor in FACTORS),
        "schedule": ("constant", "cosine"),
        "freeze_observers": (None, 1),
        "freeze_bn_stats": (0, 1, None),
    }
    return [_field("training", "training", name, values) for name, values in fields.items()]


def _field(
    part: Part,
    of: str,
    name: str,
    values: tuple[Any, ...],
    where: Callable[[Params], bool] = lambda params: True,
) -> Choice:
    """Of a part of the recipe that has fields of its own."""

    def write(recipe: Recipe, value: Any) -> Recipe:
        return recipe.having(**{of: getattr(recipe, of).having(**{name: value})})

    return Choice(part, name, values, lambda recipe: getattr(getattr(recipe, of), name), write, where)
