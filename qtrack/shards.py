"""An exact sensitivity sweep of which each worker does a share of the batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from qtrack.executors import Executor, Job, finished
from qtrack.monitor import SILENT, Monitor
from qtrack.recipe import Recipe
from qtrack.remote import OtherIngredients
from qtrack.sensitivity import Switched
from qtrack.task import Task, reference_to

log = logging.getLogger("qtrack")

SHARES = 4
"""For each worker: so few that each makes its model about once, so many that none waits long for another."""


def switched(
    executor: Executor,
    task: Task,
    recipe: Recipe,
    ingredients: Mapping[str, str],
    threads: int,
    monitor: Monitor = SILENT,
) -> list[Switched] | None:
    """What the layers of each batch do, in the order of the batches; None where workers can't do the same.

    Raises what ``Sensitivity`` raises, and WorkerLost where one worker after another was lost.
    """
    of = SHARES * executor.slots
    found: dict[int, Switched] = {}
    with monitor.phase("switch layers", of) as advance:
        for one in finished(executor, _jobs(reference_to(task), recipe, ingredients, threads, of)):
            if isinstance(one.error, OtherIngredients):
                log.warning("%s: all is executed here", one.error)
                return None
            if one.error is not None:
                raise one.error
            found |= one.result
            advance(1)
    return [found[place] for place in sorted(found)]


def _jobs(task: str, recipe: Recipe, ingredients: Mapping[str, str], threads: int, of: int) -> Iterator[Job]:
    for share in range(of):
        arguments = {
            "task": task,
            "ingredients": dict(ingredients),
            "recipe": recipe,
            "share": share,
            "of": of,
        }
        yield Job(f"share {share} of {of}", "qtrack.remote:switched", arguments, threads)
