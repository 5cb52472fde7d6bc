"""A search over recipe choices: observers, granularity, calibration, transforms, how to train."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from qtrack.outcome import Stopped, Until
from qtrack.recipe import Recipe, Seed
from qtrack.search.front import answer, front, values
from qtrack.search.space import Part, Space, has_same_choices, plain_space, point_of, recipe_at, space_of
from qtrack.stages.evidence import Evidence, Judged, ProbeFailed, SearchOver, requires

if TYPE_CHECKING:
    from qtrack.search.study import Ended, Study, Trial

Objective = Literal["metric", "latency", "size"]

WINNERS = 5
"""Of earlier runs, that are tried first."""
IDLE = 50
"""Proposals in a row without a new recipe, after which all that there is has been tried."""

log = logging.getLogger("qtrack")


@requires("optuna", "search")
def search(
    recipe: Recipe,
    evidence: Evidence,
    *,
    trials: Annotated[int, Field(ge=1)] = 20,
    objectives: tuple[Objective, ...] = ("metric",),
    space: tuple[Part, ...] | None = None,
    keep: Annotated[int, Field(ge=1)] = 3,
    batch: Annotated[int, Field(ge=1)] = 1,
    seed: Seed = 0,
) -> Recipe:
    """Let Optuna choose what the recipe leaves open; the first trial is the recipe as it is.

    The answer is the trial with the best metric among those that meet the target, or among all. With
    ``latency`` or ``size`` as objectives beside the metric it is the cheapest that meets the target, by them
    in their order, and others of the Pareto front, ``keep`` in all, become stages of their own.

    ``trials`` count those of an earlier search for the same, which this one continues. With the metric as
    the only objective a trial is stopped at a quarter, a half or three of the validation split where it is
    behind the median of the others.

    Trials are proposed ``batch`` at a time, before any of them is tried, so that workers can try them at
    once. The trials do not depend on the workers, but they do on ``batch``: each learns only from the batches
    before its own. With ``latency`` they are tried one after the other all the same: it is not measured
    while something else runs.
    """
    from qtrack.search.study import Study  # Optuna is an extra

    costs = tuple(dict.fromkeys(one for one in objectives if one != "metric"))
    found = space_of(recipe, space)
    storage = evidence.storage([plain_space(found), costs, seed])
    study = Study(storage, found, len(costs), seed)
    winners = [one for one in evidence.winners() if has_same_choices(one, recipe)]
    study.first([point_of(found, one, recipe) for one in (recipe, *winners[:WINNERS])])
    return _Search(recipe, evidence, study, found, costs).run(trials, keep, batch)


class _Search:
    """The trials so far."""

    def __init__(
        self, start: Recipe, evidence: Evidence, study: Study, space: Space, costs: Sequence[str]
    ) -> None:
        self.start = start
        self.evidence = evidence
        self.study = study
        self.space = space
        self.costs = costs
        self.samples = len(evidence.baseline.outcome.validation.scores) if evidence.baseline else None
        self.trials = 1
        known = [ended for ended in study.ended if ended.how != "again"]
        self.ended = {self.recipe_of(ended).digest: ended for ended in known}
        """By the digest of the recipe."""

    def run(self, trials: int, keep: int, batch: int) -> Recipe:
        """The answer, after so many trials."""
        self.trials = trials
        self.evidence.plan(max(0, trials - len(self.ended)))
        if self.ended:
            self.evidence.spared(len(self.ended))
        if self.evidence.previous and not self.evidence.previous.meets_target:
            self.evidence.outlook()
        self._propose()
        idle = 0
        try:
            while len(self.ended) < trials and idle < IDLE:
                asked = self.study.batch(batch)
                self._expect(asked)
                for trial in asked:
                    if len(self.ended) < trials:  # the rest is proposed again when the search goes on
                        idle = 0 if self._try(trial) else idle + 1
        except SearchOver:
            self._name_others(keep)
            raise
        finally:
            self.evidence.table("trials", [self._row(*one) for one in self.ended.items()])
        self._name_others(keep)
        self._say_luck()
        return self._answer() or self.start

    def _say_luck(self) -> None:
        """Where the answer looks as if it met the target, as one of so many may by chance."""
        best = answer(list(self.ended.values()), self.costs)
        if best and best.facts["meets_target"] is None and best.facts["alone"]:
            log.warning("search: of %d trials one may meet the target by luck: not sure", self.trials)

    def recipe_of(self, ended: Ended) -> Recipe:
        """That was tried."""
        recipe = recipe_at(self.space, self.start, ended.params)
        assert recipe is not None
        return recipe

    def _expect(self, asked: Sequence[Trial]) -> None:
        if "latency" in self.costs:
            return
        recipes = [recipe_at(self.space, self.start, trial.params) for trial in asked]
        new = dict.fromkeys(one for one in recipes if one and one.digest not in self.ended)
        self.evidence.expect(list(new)[: self.trials - len(self.ended)])

    def _try(self, trial: Trial) -> bool:
        """Was it a recipe that had not been tried?"""
        recipe = recipe_at(self.space, self.start, trial.params)
        known = self.ended.get(recipe.digest) if recipe else None
        if recipe is not None and known is None:
            self.ended[recipe.digest] = self._tried(trial, recipe)
            self._propose()
            return True
        complete = known is not None and known.how == "complete"
        trial.end("again", {}, values(known, self.costs) if known and complete else None)
        return False

    def _tried(self, trial: Trial, recipe: Recipe) -> Ended:
        try:
            judged = self.evidence.probe(recipe, timed="latency" in self.costs, until=self._until(trial))
        except Stopped as stopped:
            return trial.end("stopped", {"metric": float(stopped.scores.mean())})
        except ProbeFailed as failed:
            return trial.end("failed", {"error": str(failed)})
        return self._judged(trial, judged)

    def _judged(self, trial: Trial, judged: Judged) -> Ended:
        facts, scores = self._facts(judged), judged.outcome.validation.scores
        if math.isnan(facts["metric"]):
            return trial.end("failed", {"error": "the metric is not a number"})
        self.samples = len(scores)
        if not self.costs:
            trial.behind(scores, len(scores))  # others are held against it
        return trial.end("complete", facts, [facts[name] for name in ("metric", *self.costs)])

    def _until(self, trial: Trial) -> Until | None:
        """Optuna stops no trial of several objectives."""
        samples = self.samples
        if self.costs or samples is None:
            return None
        return lambda scores: trial.behind(scores, samples)

    def _answer(self) -> Recipe | None:
        best = answer(list(self.ended.values()), self.costs)
        return self.recipe_of(best) if best else None

    def _propose(self) -> None:
        best = self._answer()
        if best is not None:
            self.evidence.propose(best)

    def _name_others(self, keep: int) -> None:
        """As the metric alone has one best, there are others only with costs."""
        found = front(list(self.ended.values()), self.costs) if self.costs else []
        best = self._answer()
        others = [recipe for recipe in map(self.recipe_of, found) if recipe != best]
        for recipe in others[: keep - 1]:
            self.evidence.also(recipe)

    def _facts(self, judged: Judged) -> dict[str, Any]:
        """Plain data: size in bytes, latency over the float model's.

        The target is met where that holds for one that is chosen among all trials.
        """
        outcome, latency = judged.outcome, judged.outcome.latency
        met = judged.meets_target and (self.evidence.holds(judged, self.trials) or None)
        return {
            "metric": outcome.value,
            "meets_target": met,
            "alone": judged.meets_target is True,
            "size": outcome.size_bytes,
            "latency": latency.median_ms / latency.float_median_ms if latency else None,
        }

    def _row(self, digest: str, ended: Ended) -> dict[str, Any]:
        names = ("metric", "meets_target", "size", "latency", "error")
        return {
            "trial": ended.number,
            "recipe_digest": digest,
            "how": ended.how,
            **{choice.name: ended.params.get(choice.name) for choice in self.space},
            **{name: ended.facts.get(name) for name in names},
        }
