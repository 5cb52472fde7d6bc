"""One execution in another process: what it is given and what it sends back are plain data.

The task is not sent. A process loads it by its name as often as it meets another, so that model and data get
there once, and it says no where anything that goes into the execution is not what the campaign has.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count
from typing import Any, NoReturn

import torch
from torch import nn

from qtrack.backends.engines import quiet
from qtrack.data import inspect_splits
from qtrack.engine import execute, rebuild
from qtrack.engine.packed import unpacked
from qtrack.errors import QtrackError
from qtrack.ingredients import common_ingredients, drifted
from qtrack.monitor import Advance
from qtrack.outcome import Outcome
from qtrack.recipe import Recipe
from qtrack.sensitivity import Sensitivity, Switched
from qtrack.statistics import Scores
from qtrack.task import Task, load_task


class OtherIngredients(QtrackError):
    """This process would not execute the same: other code, data, versions, or another processor."""


@dataclass(frozen=True, eq=False)
class Sent:
    """What an execution came to, without its model."""

    outcome: Outcome
    state: bytes
    """The model's ``state_dict`` without torch's objects, as ``torch.save`` writes it."""
    batches: list[int]
    """Validation samples that were done after each batch."""
    points: list[tuple[str, float, int]]
    """What was reported meanwhile: key, value, step."""

    def whole(self, task: Task) -> Outcome:
        """The outcome, whose model is built where it is asked for."""
        return replace(self.outcome, build=lambda: rebuild(task, self.outcome.recipe, _read(self.state)))


def executed(
    task: str,
    ingredients: Mapping[str, str],
    recipe: Recipe,
    sizes: Mapping[str, int],
    *,
    thorough: bool,
    timed: bool,
) -> Sent:
    """Execute a recipe; raises what ``engine.execute`` raises, and OtherIngredients."""
    found = _same(task, ingredients)
    batches: list[int] = []
    noted = _Noted()

    def note(scores: Scores) -> bool:
        batches.append(len(scores))
        return False

    outcome = execute(
        found, recipe, _Floating(found), noted, thorough=thorough, timed=timed, until=note, sizes=sizes
    )
    state = _written(unpacked(outcome.model.state_dict()))
    return Sent(replace(outcome, build=_not_sent), state, batches, noted.points)


def switched(
    task: str, ingredients: Mapping[str, str], recipe: Recipe, share: int, of: int
) -> list[tuple[int, Switched]]:
    """A share of an exact sensitivity sweep: what each layer does in these batches, by their places.

    Raises what ``Sensitivity`` raises, and OtherIngredients.
    """
    found = _sensitivity(_same(task, ingredients), recipe)
    return list(zip(count(share, of), found.switched(share, of), strict=False))


@lru_cache(maxsize=1)
def _sensitivity(task: Task, recipe: Recipe) -> Sensitivity:
    return Sensitivity(task, recipe)


def _same(name: str, ingredients: Mapping[str, str]) -> Task:
    """The task, where all that goes into an execution is the same here; raises OtherIngredients."""
    task, own = _task(name, torch.get_num_threads())
    for drift in drifted(ingredients, own):
        raise OtherIngredients(f"{drift.name} is {drift.now[:20]} on the worker, and {drift.was[:20]} here")
    return task


@lru_cache(maxsize=1)
def _task(name: str, threads: int) -> tuple[Task, dict[str, str]]:
    """And all that goes into whatever is executed with so many threads."""
    try:
        task = load_task(name)
        return task, common_ingredients(task, inspect_splits(task))
    except QtrackError as error:  # it has been loaded where the campaign is
        raise OtherIngredients(f"a worker cannot load the task: {error}") from error


@dataclass(frozen=True)
class _Floating:
    """What ``execute`` needs to know of the float model's outcome."""

    task: Task

    @property
    def model(self) -> nn.Module:
        return self.task.model().eval()


@dataclass
class _Noted:
    """A monitor that keeps the points for the campaign's own."""

    points: list[tuple[str, float, int]] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str, total: int | None) -> Iterator[Advance]:
        yield lambda done: None

    def report(self, key: str, value: float, step: int) -> None:
        self.points.append((key, value, step))


def _written(state: Mapping[str, Any]) -> bytes:
    written = io.BytesIO()
    torch.save(state, written)
    return written.getvalue()


def _read(state: bytes) -> dict[str, Any]:
    with quiet():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # torch's own
        found: dict[str, Any] = torch.load(io.BytesIO(state), weights_only=True, map_location="cpu")
    return found


def _not_sent() -> NoReturn:
    raise AssertionError("the model was not sent")
