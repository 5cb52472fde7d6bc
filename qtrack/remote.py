"""One execution in another process: what it is given and what it sends back are plain data.

The task is not sent. A process loads it by its name as often as it meets another, so that model and data get
there once, and it says no where anything that goes into the execution is not what the campaign has.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count, islice
from typing import Any, NoReturn

import torch
from torch import nn

from qtrack.backends.engines import using_engine
from qtrack.data import batches_of, inspect_splits
from qtrack.engine import Checkpoint, execute, nearest, rebuild, using_device
from qtrack.engine.evaluation import Part, part
from qtrack.engine.packed import read, unpacked
from qtrack.errors import InputError, QtrackError
from qtrack.executors import Job, Placed
from qtrack.ingredients import common_ingredients, drifted
from qtrack.monitor import Silent
from qtrack.outcome import Outcome
from qtrack.recipe import Recipe
from qtrack.sensitivity import Sensitivity, Switched
from qtrack.statistics import Scores
from qtrack.task import Batch, Split, Task, load_task


class OtherIngredients(QtrackError):
    """This process would not execute the same: other code, data, versions, or another processor."""


@dataclass(frozen=True, eq=False)
class Terms:
    """On what, and how, executions take place: what is equal in them comes to the same anywhere."""

    task: str
    """As ``reference_to`` names it."""
    ingredients: Mapping[str, str]
    """Those that do not depend on the recipe."""
    threads: int = 1
    device: str = "cpu"

    def job(self, name: str, function: Callable[..., Any], **arguments: Any) -> Job:
        """A call of one of the functions below."""
        gpus = int(self.device != "cpu")
        return Job(name, f"{__name__}:{function.__name__}", {"terms": self, **arguments}, self.threads, gpus)


@dataclass(frozen=True, eq=False)
class Sent:
    """What an execution came to, without its model."""

    outcome: Outcome
    state: bytes
    """Of the model, as ``written``."""
    batches: list[int]
    """Validation samples that were done after each batch."""
    points: list[tuple[str, float, int]]
    """What was reported meanwhile: key, value, step."""

    def whole(self, task: Task) -> Outcome:
        """The outcome, whose model is built where it is asked for."""
        return replace(
            self.outcome, build=lambda: rebuild(task, self.outcome.recipe, read(io.BytesIO(self.state)))
        )


def executed(
    terms: Terms,
    recipe: Recipe,
    sizes: Mapping[str, int],
    *,
    thorough: bool,
    timed: bool,
    checkpoint: Checkpoint | None = None,
) -> Sent:
    """Execute a recipe; raises what ``engine.execute`` raises, and OtherIngredients.

    Training keeps itself under the checkpoint's path, where a worker that is given it again goes on.
    """
    batches: list[int] = []
    noted = _Noted()

    def note(scores: Scores) -> bool:
        batches.append(len(scores))
        return False

    with _agreed(terms) as found:
        outcome = execute(
            found,
            recipe,
            _Floating(found),
            noted,
            thorough=thorough,
            timed=timed,
            until=note,
            sizes=sizes,
            checkpoint=checkpoint,
        )
    return Sent(replace(outcome, build=_not_sent), written(outcome.model), batches, noted.points)


def written(model: nn.Module) -> bytes:
    """The model's ``state_dict`` without torch's objects, as ``torch.save`` writes it."""
    file = io.BytesIO()
    torch.save(unpacked(model.state_dict()), file)
    return file.getvalue()


def switched(terms: Terms, recipe: Recipe, share: int, of: int) -> list[tuple[int, Switched]]:
    """A share of an exact sensitivity sweep: what each layer does in these batches, by their places.

    Raises what ``Sensitivity`` raises, and OtherIngredients.
    """
    with _agreed(terms) as task:
        found = _sensitivity(task, recipe)
        return list(zip(count(share, of), found.switched(share, of), strict=False))


@lru_cache(maxsize=1)
def _sensitivity(task: Task, recipe: Recipe) -> Sensitivity:
    return Sensitivity(task, recipe)


def evaluated(
    terms: Terms, recipe: Recipe, state: Placed, split: Split, first: int, count: int
) -> list[Part]:
    """What the recipe's model with this ``state``, as ``written``, does on so many batches, in order.

    Raises what ``engine.execute`` raises, and OtherIngredients.
    """
    with _agreed(terms) as task, using_engine(recipe.engine):
        model = _rebuilt(task, recipe, state)
        with torch.no_grad():
            batches = _reading(task, split).batches(first, count)
            return [part(task, model, split, place, batch) for place, batch in enumerate(batches, first)]


@lru_cache(maxsize=1)
def _rebuilt(task: Task, recipe: Recipe, state: Placed) -> nn.Module:
    return rebuild(task, recipe, read(io.BytesIO(state.read())))


class _Reading:
    """A split that is read on from where the last share of it ended."""

    def __init__(self, task: Task, split: Split) -> None:
        self._task, self._split = task, split
        self._begin()

    def _begin(self) -> None:
        self._place, self._batches = 0, batches_of(self._task, self._split)

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        if first < self._place:
            self._begin()
        place, batches = self._place, self._batches
        self._begin()  # once more, where these are not read to the end
        yield from islice(batches, first - place, first - place + count)
        self._place, self._batches = first + count, batches


_reading = lru_cache(maxsize=1)(_Reading)


@contextmanager
def _agreed(terms: Terms) -> Iterator[Task]:
    """The task, where all that goes into an execution is the same here; raises OtherIngredients."""
    with ExitStack() as opened:
        try:
            opened.enter_context(using_device(nearest(terms.device)))
        except InputError as error:
            raise OtherIngredients(f"on a worker: {error}") from error
        task, own = _task(terms.task, torch.get_num_threads(), terms.device)
        for drift in drifted(terms.ingredients, own):
            now, was = drift.now[:20], drift.was[:20]
            raise OtherIngredients(f"{drift.name} is {now} on a worker, and {was} here")
        yield task


@lru_cache(maxsize=1)
def _task(name: str, threads: int, device: str) -> tuple[Task, dict[str, str]]:
    """And all that goes into whatever is executed so."""
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
class _Noted(Silent):
    """Keeps the points for the campaign's own monitor."""

    points: list[tuple[str, float, int]] = field(default_factory=list)

    def report(self, key: str, value: float, step: int) -> None:
        self.points.append((key, value, step))


def _not_sent() -> NoReturn:
    raise AssertionError("the model was not sent")
