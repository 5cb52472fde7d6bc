"""Work on batches of which each worker does a share: an exact sensitivity sweep, an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from qtrack import remote
from qtrack.engine.evaluation import Begun, Part
from qtrack.executors import Executor, Finished, Job, Placed, finished
from qtrack.monitor import SILENT, Monitor
from qtrack.recipe import Recipe
from qtrack.sensitivity import Switched

log = logging.getLogger("qtrack")

SHARES = 4
"""For each worker: so few that it makes its model about once, so many that none waits long for another."""
START_S = 4.0
"""What a worker may take before it makes the model: its first job imports torch and reads the data.

Measured on 512 images of 128x128: 2 s with a core for itself, twice that with half of one.
"""


def switched(
    executor: Executor, terms: remote.Terms, recipe: Recipe, monitor: Monitor = SILENT
) -> list[Switched] | None:
    """What the layers of each batch do, in the order of the batches; None where workers can't do the same.

    Raises what ``Sensitivity`` raises, and WorkerLost where one worker after another was lost.
    """
    of = SHARES * executor.at_once(terms.threads)
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


def is_worth_it(begun: Begun, batches: int, workers: int) -> bool:
    """Do so many workers save more of an evaluation than making the model takes them?"""
    left_s = (batches - begun.batches) * begun.batch_s
    return workers > 1 and left_s * (1 - 1 / workers) > START_S + begun.model_s


def evaluated(
    executor: Executor,
    terms: remote.Terms,
    begun: Begun,
    batches: int,
    others: Collection[Future[Any]] = (),
) -> Iterator[Part]:
    """What a model does on those of a split's batches that are left, in their order.

    A share is a run of batches, and the shares begin in order: little waits for its turn here, little was in
    vain where the evaluation ends early, and a worker reads on from its last share. ``others`` are what runs
    on the executor already.

    Raises what ``engine.execute`` raises, OtherIngredients, and WorkerLost where one worker after another was
    lost; each after the parts before it.
    """
    turn, early = begun.batches, dict[int, Finished]()
    count = -(-(batches - turn) // (SHARES * executor.at_once(terms.threads)))
    with executor.placed(remote.written(begun.model)) as state:
        jobs = _runs(terms, begun, state, range(turn, batches, count), count)
        for done in finished(executor, jobs, others=others):
            early[done.job.arguments["first"]] = done
            while share := early.pop(turn, None):
                if share.error is not None:
                    raise share.error
                yield from share.result
                turn += count


def _runs(
    terms: remote.Terms, begun: Begun, state: Placed, firsts: Iterable[int], count: int
) -> Iterator[Job]:
    for first in firsts:
        yield terms.job(
            f"{begun.split} batches from {first}",
            remote.evaluated,
            recipe=begun.recipe,
            state=state,
            split=begun.split,
            first=first,
            count=count,
        )
