"""What a campaign measures for a stage that asks: each thing once, with its cost counted to that stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qtrack.errors import BackendError
from qtrack.finding import Diagnosis
from qtrack.monitor import Monitor
from qtrack.outcome import Cost
from qtrack.recipe import Recipe
from qtrack.records import StageRecord
from qtrack.search.outlook import outlook
from qtrack.search.prices import PriceTable
from qtrack.sensitivity import Sensitivity
from qtrack.sensitivity.prices import prices
from qtrack.stages import Judged, Target
from qtrack.stages.evidence import nothing_to_price
from qtrack.statistics import Scores
from qtrack.task import Task

log = logging.getLogger("qtrack")

NOTHING = Cost(0.0, {}, 0, 0)


@dataclass(frozen=True, eq=False)
class Asked:
    """What a stage starts from, and where what is measured of it goes."""

    task: Task
    start: Judged | None
    sizes: Mapping[str, int]
    monitor: Monitor
    record: StageRecord
    kept: dict[str, Any]
    """What earlier stages of the campaign had measured, of the last recipe that they asked about."""

    def once(self, what: str, recipe: Recipe, measure: Callable[[], Any]) -> tuple[Any, bool]:
        """Measured now, or for an earlier stage; and whether it is new, so that this stage pays for it."""
        known = self.kept.get(what)
        if known is None or known[0] != recipe.digest:
            self.kept[what] = recipe.digest, measure()
        return self.kept[what][1], known is not self.kept[what]


def total(*costs: Cost | None) -> Cost | None:
    """Of what was measured; None where nothing was."""
    known = [cost for cost in costs if cost is not None]
    return sum(known[1:], known[0]) if known else None


@dataclass
class Diagnoser:
    """Diagnoses the stage that another starts from."""

    diagnose: Callable[[], Diagnosis]
    record: StageRecord
    found: Diagnosis | None = None

    def __call__(self) -> Diagnosis:
        if self.found is None:
            self.record.begin()
            self.found = self.diagnose()
        return self.found

    def followed(self, recipe: Recipe) -> str | None:
        """The stage of the remedy that gives this recipe; None where none does, or nothing was asked."""
        remedies = self.found.remedies if self.found else ()
        given = (one.stage for one in remedies if one.recipe and one.recipe.digest == recipe.digest)
        return next(given, None)

    @property
    def cost(self) -> Cost | None:
        """None where nothing was asked."""
        if self.found is None:
            return None
        return Cost(self.found.seconds, {"diagnose": self.found.seconds}, self.found.forward_samples, 0)


@dataclass
class Sensor:
    """Switches the layers of the stage that another starts from."""

    stage: str
    asked: Asked
    found: Sensitivity | None = None
    done: bool = False
    before: Cost = NOTHING
    """What earlier stages have paid for already."""

    def __call__(self) -> Sensitivity | None:
        """None where they cannot be switched, which is said."""
        if not self.done and self.asked.start is not None:
            self.done = True
            self.asked.record.begin()
            recipe = self.asked.start.outcome.recipe
            self.found, new = self.asked.once("sensitivity", recipe, lambda: self._measured(recipe))
            if self.found is not None:
                self.before = NOTHING if new else _spent(self.found)
                self.asked.record.table("sensitivity", self.found.ranking.rows())
        return self.found

    def outlook(self, floating: Judged | None, target: Target) -> None:
        """Say which side of the quantization alone misses the target already; once for each recipe."""
        found = self()
        if found is None or floating is None:
            return
        legs, new = self._legs(found)
        scores = floating.outcome.validation.scores
        for sentence in outlook(found.recipe, legs, scores, target.max_drop, target.confidence):
            if new:
                log.warning("%s: %s", self.stage, sentence)

    def _legs(self, found: Sensitivity) -> tuple[Mapping[Any, Scores], bool]:
        return self.asked.once("legs", found.recipe, found.legs)

    def _measured(self, recipe: Recipe) -> Sensitivity | None:
        if recipe.training:  # to build its model once more is to train once more
            return None
        try:
            return Sensitivity(self.asked.task, recipe, self.asked.monitor, sizes=self.asked.sizes)
        except BackendError as error:
            log.info("%s: layers are ranked by their own share of the error: %s", self.stage, error)
            return None

    @property
    def cost(self) -> Cost | None:
        """None where nothing was measured."""
        if self.found is None:
            return None
        now, before = _spent(self.found), self.before
        seconds = now.seconds - before.seconds
        return Cost(seconds, {"sensitivity": seconds}, now.forward_samples - before.forward_samples, 0)


def _spent(found: Sensitivity) -> Cost:
    return Cost(found.seconds, {}, found.forward_samples, 0)


@dataclass
class Pricer:
    """Prices the layers of the stage that another starts from."""

    asked: Asked
    table: PriceTable | None = None
    cost: Cost | None = None
    """None where nothing was asked, or an earlier stage has paid."""

    def __call__(self) -> PriceTable:
        if self.asked.start is None:
            return nothing_to_price()
        if self.table is None:
            self.asked.record.begin()
            recipe = self.asked.start.outcome.recipe
            asked = self.asked
            (self.table, cost), new = asked.once(
                "prices", recipe, lambda: prices(asked.task, recipe, asked.monitor, asked.sizes)
            )
            self.cost = cost if new else None
        return self.table

    def tell(self, recipe: Recipe) -> None:
        """Record what was measured, and which of it the recipe has chosen."""
        if self.table is not None:
            self.asked.record.table("prices", self.table.rows(self.table.chosen(recipe)))
