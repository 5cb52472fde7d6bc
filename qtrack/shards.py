"""Work on batches of which each worker does a share: an exact sensitivity sweep, an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from typing import Any

from torch import nn

from qtrack import remote
from qtrack.engine.evaluation import Part
from qtrack.executors import Executor, Finished, finished
from qtrack.monitor import SILENT, Monitor
from qtrack.recipe import Recipe
from qtrack.sensitivity import Switched
from qtrack.task import Split

log = logging.getLogger("qtrack")

SHARES = 4
"""For each worker: so few that it makes its model about once, so many that none waits long for another."""


def switched(
    executor: Executor, terms: remote.Terms, recipe: Recipe, monitor: Monitor = SILENT
) -> list[Switched] | None:
    """What the layers of each batch do, in the order of the batches; None where workers can't do the same.

    Raises what ``Sensitivity`` raises, and WorkerLost where one worker after another was lost.
    """
    of = SHARES * executor.slots
    jobs = (
        terms.job(f"share {share} of {of}", remote.switched, recipe=recipe, share=share, of=of)
        for share in range(of)
    )
    found: dict[int, Switched] = {}
    with monitor.phase("switch layers", of) as advance:
        for one in finished(executor, jobs):
            if isinstance(one.error, remote.OtherIngredients):
                log.warning("%s: all is executed here", one.error)
                return None
            if one.error is not None:
                raise one.error
            found |= one.result
            advance(1)
    return [found[place] for place in sorted(found)]


def evaluated(
    executor: Executor,
    terms: remote.Terms,
    recipe: Recipe,
    model: nn.Module,
    split: Split,
    batches: int,
    others: Collection[Future[Any]] = (),
) -> Iterator[Part]:
    """What the recipe's model does on each batch of a split, in the order of the batches.

    A share is a run of batches, and the shares begin in order: little waits for its turn here, little was in
    vain where the evaluation ends early, and a worker reads on from its last share. ``others`` are what runs
    on the executor already.

    Raises what ``engine.execute`` raises, OtherIngredients, and WorkerLost where one worker after another was
    lost; each after the parts before it.
    """
    count = -(-batches // (SHARES * executor.slots))
    state = remote.written(model)
    jobs = (
        terms.job(
            f"{split} batches from {first}",
            remote.evaluated,
            recipe=recipe,
            state=state,
            split=split,
            first=first,
            count=count,
        )
        for first in range(0, batches, count)
    )
    turn, early = 0, dict[int, Finished]()
    for done in finished(executor, jobs, others=others):
        early[done.job.arguments["first"]] = done
        while share := early.pop(turn, None):
            if share.error is not None:
                raise share.error
            yield from share.result
            turn += count
