"""An exact sensitivity sweep of which each worker does a share of the batches."""

from __future__ import annotations

import logging

from qtrack import remote
from qtrack.executors import Executor, finished
from qtrack.monitor import SILENT, Monitor
from qtrack.recipe import Recipe
from qtrack.sensitivity import Switched

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
