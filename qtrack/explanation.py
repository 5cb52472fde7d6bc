"""Which difference between two recorded stages moved the metric: each is swapped alone, and executed.

At hand are the task as it is now, both recipes, and the number of threads. Both stages are executed again as
they are; then the first one with a single part of the second: a field of the recipe (RECIPE_PARTS, as a
whole), or its threads. What is not at hand (older data, weights, code, versions) cannot be swapped and is
listed. The recorded change of the metric is the sum of

* what each swap changes alone,
* the *interaction*: what both executions differ by and single swaps do not add up to, with the share of
  those that could not be executed,
* what is *not at hand*: the part of the recorded change that the two executions do not show.

A swap's interval is paired over the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from qtrack.difference import Difference, Shift, shift
from qtrack.errors import InputError, QtrackError
from qtrack.ingredients import drifted
from qtrack.reading import faults_of
from qtrack.recipe import Recipe
from qtrack.reproduction import Recorded
from qtrack.sources import NONE
from qtrack.statistics import Scores

RECIPE_PARTS = (
    *("backend", "engine", "seed", "default", "overrides", "non_traceable", "transforms"),
    *("calibration", "training"),
)
"""Of ``default``, weight and activation are parts of their own where both recipes have the same mode.

A backend takes the engine along: some have none.
"""
SCHEME_PARTS = ("weight", "activation", "config")
THREADS = "threads"
Execute = Callable[[str, Recipe, int | None], Scores]
"""The scores of a recipe on the validation split, under a title and with a number of threads."""


@dataclass(frozen=True)
class Execution:
    """The first stage with one part of the second, or a stage as it is."""

    name: str
    value: float
    shift: Shift
    """Against the first stage, executed again."""


@dataclass(frozen=True)
class Skipped:
    """A part that could not be swapped alone."""

    name: str
    reason: str


@dataclass(frozen=True)
class NotAtHand:
    """An ingredient that differs and cannot be put back."""

    name: str
    was: str
    other: str
    now: str


@dataclass(frozen=True)
class Explanation:
    """What the recorded change of the metric comes from."""

    first: Execution
    second: Execution
    swaps: tuple[Execution, ...]
    skipped: tuple[Skipped, ...]
    not_at_hand: tuple[NotAtHand, ...]
    drifted_since: tuple[str, ...]
    """Ingredients that were equal in both stages and are something else now."""
    recorded_change: float

    @property
    def interaction(self) -> float:
        """Change between the two executions that single swaps do not add up to."""
        return self.second.shift.change - sum(swap.shift.change for swap in self.swaps)

    @property
    def beyond(self) -> float:
        """Recorded change that the two executions do not show."""
        return self.recorded_change - self.second.shift.change

    def share(self, change: float) -> float | None:
        """Of the recorded change; None where there was none."""
        return change / self.recorded_change if self.recorded_change else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        shares = [asdict(swap) | {"share": self.share(swap.shift.change)} for swap in self.swaps]
        return asdict(self) | {"swaps": shares, "interaction": self.interaction, "beyond": self.beyond}


def explained(
    found: Difference, first: Recorded, second: Recorded, now: Mapping[str, str], execute: Execute
) -> Explanation:
    """Execute both stages and each swap; ``now`` are the ingredients at hand.

    Raises InputError where the two have different metrics, and what an execution of either as it is raises.
    """
    if first.metric != second.metric:
        raise InputError(f"no change to explain: one run has {first.metric}, the other {second.metric}")
    return _Explaining(found, first, second, execute).explanation(now)


def recipe_swaps(first: Recipe, second: Recipe) -> Iterator[tuple[str, Recipe | Skipped]]:
    """The first recipe with one part of the second at a time, or why that is no recipe."""
    for name, changes in _changed_parts(first, second):
        try:
            yield name, first.having(**changes)
        except ValidationError as error:
            yield name, Skipped(name, "; ".join(faults_of(error, Recipe, "recipe")))


def _changed_parts(first: Recipe, second: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in RECIPE_PARTS:
        was, now = getattr(first, name), getattr(second, name)
        if name == "default" and was.mode == now.mode:
            for part in SCHEME_PARTS:
                if getattr(was, part, None) != getattr(now, part, None):
                    yield f"default.{part}", {"default": was.having(**{part: getattr(now, part)})}
        elif was != now:
            yield name, {name: now} | ({"engine": second.engine} if name == "backend" else {})


class _Explaining:
    """What was executed so far; the same recipe with as many threads is not executed twice."""

    def __init__(self, found: Difference, first: Recorded, second: Recorded, execute: Execute) -> None:
        self.found = found
        self.first, self.second = first, second
        self.threads = first.threads or second.threads, second.threads or first.threads
        self.execute = execute
        self.known: dict[tuple[str, int | None], Scores] = {}
        self.skipped: list[Skipped] = []

    def explanation(self, now: Mapping[str, str]) -> Explanation:
        first, second = self.found.titles
        return Explanation(
            first=self._execution(first, first, self.first.recipe, self.threads[0]),
            second=self._execution(second, second, self.second.recipe, self.threads[1]),
            swaps=tuple(self._swaps()),
            skipped=tuple(self.skipped),
            not_at_hand=tuple(_not_at_hand(self.found, now)),
            drifted_since=tuple(_drifted_since(self.found, self.first, now)),
            recorded_change=self.second.result.value - self.first.result.value,
        )

    def _swaps(self) -> Iterator[Execution]:
        first, second = self.found.titles
        for name, recipe, threads in self._swapped():
            try:
                yield self._execution(name, f"{first} with {name} of {second}", recipe, threads)
            except QtrackError as error:
                self.skipped.append(Skipped(name, " ".join(str(error).split())))

    def _swapped(self) -> Iterator[tuple[str, Recipe, int | None]]:
        for name, recipe in recipe_swaps(self.first.recipe, self.second.recipe):
            if isinstance(recipe, Skipped):
                self.skipped.append(recipe)
            else:
                yield name, recipe, self.threads[0]
        if self.threads[0] != self.threads[1]:
            yield THREADS, self.first.recipe, self.threads[1]

    def _execution(self, name: str, title: str, recipe: Recipe, threads: int | None) -> Execution:
        key = recipe.digest, threads
        if key not in self.known:
            self.known[key] = self.execute(title, recipe, threads)
        base, scores = self.known[self.first.recipe.digest, self.threads[0]], self.known[key]
        return Execution(name, float(scores.mean()), shift(base, scores))


def _not_at_hand(found: Difference, now: Mapping[str, str]) -> Iterator[NotAtHand]:
    for drift in found.drifts:
        if drift.name != THREADS:
            yield NotAtHand(drift.name, drift.was, drift.now, now.get(drift.name, NONE))


def _drifted_since(found: Difference, first: Recorded, now: Mapping[str, str]) -> Iterator[str]:
    equal = [name for group in found.ingredients.values() for name in group.equal if name != THREADS]
    shared = {name: first.ingredients[name] for name in equal if name in first.ingredients}
    yield from (drift.name for drift in drifted(shared, now))
