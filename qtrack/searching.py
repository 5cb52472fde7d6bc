"""What a campaign does for a stage that searches: tries recipes, within a budget, and keeps the best so far.

A search ends in one of three ways: it is complete, its budget is spent, or it is interrupted. In the last two
the stage's answer is what it proposed last, so that time spent always leaves a model behind.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from qtrack.budget import Budget
from qtrack.errors import QtrackError, StoreError
from qtrack.monitor import Advance, Monitor
from qtrack.outcome import Cost, Stopped, Until
from qtrack.recipe import Recipe
from qtrack.records import Failure, Searched, StageRecord
from qtrack.stages import Judged
from qtrack.stages.evidence import ProbeFailed, SearchOver

log = logging.getLogger("qtrack")

Try = Callable[[Recipe, Monitor, bool, Until | None], Judged]


@dataclass
class Purse:
    """What is left of a budget, over all searches of a campaign."""

    budget: Budget
    seconds: float = 0.0

    def gone(self, evaluations: int) -> bool:
        """Is there nothing left for one more evaluation of a search that has made so many?"""
        minutes, most = self.budget.max_minutes, self.budget.max_evaluations
        return (minutes is not None and self.seconds >= 60 * minutes) or (
            most is not None and evaluations >= most
        )

    @contextmanager
    def paying(self) -> Iterator[None]:
        """For the time that this takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


@dataclass
class Prober:
    """Tries recipes for one stage; what this campaign has executed already costs nothing."""

    stage: str
    start: Judged | None
    attempt: Try
    known: Callable[[Recipe], Judged | None]
    purse: Purse
    monitor: Monitor
    record: StageRecord
    probes: list[Judged] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    planned: int | None = None
    saved: int = 0
    ended: str | None = None
    proposed: Recipe | None = None
    _advance: Advance | None = None
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def steps(self) -> int:
        """Recipes tried, those that failed among them."""
        return len(self.probes) + len(self.failures)

    def __call__(self, recipe: Recipe, /, *, timed: bool = False, until: Until | None = None) -> Judged:
        """Execute and judge it, as ``stages.evidence.Probe`` says."""
        known = self.known(recipe)
        if known is not None and not (timed and known.outcome.latency is None):
            return known
        if self.purse.gone(self.steps):
            raise SearchOver("budget")
        self.record.begin()
        with self.purse.paying():
            judged = self._tried(recipe, timed, until)
        self.probes.append(judged)
        self._report(judged)
        return judged

    def _tried(self, recipe: Recipe, timed: bool, until: Until | None) -> Judged:
        try:
            return self.attempt(recipe, self.monitor, timed, until)
        except StoreError:
            raise
        except Stopped as stopped:
            value = f"{stopped}, where the metric was {stopped.scores.mean():.4f}"
            self.failures.append(Failure(self.steps + 1, recipe.digest, value, stopped.cost))
            self._done()
            raise
        except (QtrackError, RuntimeError, MemoryError) as error:  # of this recipe; others may do
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.failures.append(Failure(self.steps + 1, recipe.digest, reason))
            log.warning("%s: a probe failed and is skipped: %s", self.stage, reason)
            self._done()
            raise ProbeFailed(reason) from error

    def _report(self, judged: Judged) -> None:
        step, outcome = self.steps, judged.outcome
        self.monitor.report(f"search/{outcome.metric}", outcome.value, step)
        self.monitor.report("search/float_layers", len(outcome.float_layers), step)
        self._done()

    def _done(self) -> None:
        if self._advance:
            self._advance(1)

    def plan(self, evaluations: int) -> None:
        """Say how many evaluations it will be at most."""
        self.planned = evaluations
        log.info("%s: %s", self.stage, self._plan(evaluations))
        self._advance = self._open.enter_context(self.monitor.phase("search", evaluations))

    def _plan(self, evaluations: int) -> str:
        text = f"at most {evaluations} evaluations"
        if self.start is not None:
            cost = probe_cost(self.start.outcome.cost)
            text += f", about {duration(evaluations * cost.seconds)} ({cost.seconds:.1f} s each, as measured"
            text += f" before) and {evaluations * cost.forward_samples:,} samples forward"
        most = self.purse.budget.max_evaluations
        return text + (f"; the budget allows {most}" if most is not None and most < evaluations else "")

    def spared(self, evaluations: int) -> None:
        """Say how many of them an earlier search has made needless."""
        self.saved = evaluations
        log.info("%s: what an earlier run found saves up to %d evaluations", self.stage, evaluations)

    def propose(self, recipe: Recipe) -> None:
        """What the answer would be if the search ended now."""
        self.proposed = recipe

    def answer(self, search: Callable[[], Recipe]) -> Recipe:
        """The stage's answer; where its search is cut short, the best so far.

        Raises KeyboardInterrupt where there is nothing to keep yet.
        """
        with self._open:
            try:
                return search()
            except SearchOver as over:
                self.ended = str(over)
                log.warning("%s: its budget is spent after %d evaluations", self.stage, self.steps)
            except KeyboardInterrupt:
                if not self.probes:
                    raise
                self.ended = "interrupted"
                log.warning("%s: interrupted; the best so far is kept (Ctrl-C again: not)", self.stage)
            return self._best()

    def _best(self) -> Recipe:
        if self.proposed is not None:
            return self.proposed
        tried = self.probes + ([self.start] if self.start else [])
        if not tried:
            raise QtrackError(f"stage {self.stage}: its budget allows no evaluation: give it more")
        return max(tried, key=_rank).outcome.recipe

    @property
    def searched(self) -> Searched | None:
        """None where it did not search."""
        if self.planned is None and not self.steps:
            return None
        return Searched(self.ended or "complete", self.planned, self.steps, self.saved, tuple(self.failures))


def probe_cost(cost: Cost) -> Cost:
    """What one more recipe like this costs, when only its validation metric is asked for."""
    phases = {name: cost.phases.get(name, 0.0) for name in ("prepare", "correct", "calibrate", "train")}
    phases |= {name: cost.phases.get(name, 0.0) for name in ("convert", "evaluate")}
    return Cost(sum(phases.values()), phases, cost.forward_samples, 1)


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _rank(judged: Judged) -> tuple[bool, float]:
    value = judged.outcome.value
    return judged.meets_target is True, -math.inf if math.isnan(value) else value
