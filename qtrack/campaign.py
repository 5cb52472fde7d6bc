"""One execution of a pipeline, stage by stage.

The campaign knows the order of things and nothing of MLflow or terminals: what happens is told to a Recorder,
which the ledger implements, and to a Monitor.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import ValidationError

from qtrack.data import SplitInfo, inspect_splits, overlaps
from qtrack.engine import check_forward, execute, settled, torch_threads
from qtrack.environment import environment
from qtrack.errors import RecipeError
from qtrack.ingredients import common_ingredients, recipe_ingredients
from qtrack.monitor import SILENT, Advance, Monitor
from qtrack.outcome import Cost, Outcome
from qtrack.pipeline import Plan, StageSpec
from qtrack.reading import faults_of
from qtrack.recipe import Recipe
from qtrack.stages import Evidence, Judged, judge

log = logging.getLogger("qtrack")


@dataclass(frozen=True, eq=False)
class Setting:
    """All that is known before the first stage runs."""

    plan: Plan
    splits: Mapping[str, SplitInfo]
    environment: Mapping[str, Any]
    ingredients: Mapping[str, str] = field(default_factory=dict)
    """Those that all stages share."""


@dataclass(frozen=True, eq=False)
class StageResult:
    """A finished stage: its outcome, judged against the float baseline, and the probes of its search."""

    name: str
    index: int
    judged: Judged
    baseline: Outcome
    probes: tuple[Judged, ...] = ()
    ingredients: Mapping[str, str] = field(default_factory=dict)
    """What went into it, by name."""

    @property
    def outcome(self) -> Outcome:
        return self.judged.outcome

    @property
    def cost(self) -> Cost:
        """Of the stage with its search."""
        return sum((probe.outcome.cost for probe in self.probes), self.outcome.cost)


class StageRecord(Protocol):
    """Where one stage is written while it runs."""

    def recipe(self, recipe: Recipe, previous: Recipe | None) -> None:
        """The recipe about to be executed, and that of the stage it started from."""

    def report(self, key: str, value: float, step: int) -> None:
        """A point on a curve."""

    def result(self, result: StageResult) -> None:
        """What came out."""


class CampaignRecord(Protocol):
    """Where one campaign is written while it runs."""

    id: str

    def stage(self, spec: StageSpec, index: int) -> AbstractContextManager[StageRecord]:
        """Open a stage's record; left by an exception it ends as failed, by Ctrl-C as killed."""

    def summary(self, results: Sequence[StageResult]) -> None:
        """What all stages came to."""


class Recorder(Protocol):
    """Keeps campaigns."""

    def campaign(self, setting: Setting) -> AbstractContextManager[CampaignRecord]:
        """Open a campaign's record."""


def run_plan(plan: Plan, recorder: Recorder, monitor: Monitor = SILENT) -> list[StageResult]:
    """Run all stages in order and record each; data and model are checked before any record is opened."""
    with torch_threads(plan.pipeline.threads):
        setting = _inspect(plan, monitor)
        with recorder.campaign(setting) as record:
            campaign = _Campaign(setting, record, monitor)
            try:
                campaign.run()
            finally:
                record.summary(campaign.results)
            return campaign.results


def _inspect(plan: Plan, monitor: Monitor) -> Setting:
    splits = inspect_splits(plan.task, monitor)
    for warning in overlaps(splits):
        log.warning(warning)
    check_forward(plan.task)
    return Setting(plan, splits, environment(plan.folder), common_ingredients(plan.task, splits))


class _Campaign:
    """The state of a running campaign: what earlier stages left behind."""

    def __init__(self, setting: Setting, record: CampaignRecord, monitor: Monitor) -> None:
        self.plan = plan = setting.plan
        self.sizes = {name: split.samples for name, split in setting.splits.items()}
        self.ingredients = setting.ingredients
        self.record = record
        self.monitor = monitor
        self.start = settled(plan.pipeline.recipe)
        self.results: list[StageResult] = []
        self.judged: dict[str, Judged] = {}
        self.known: dict[str, Judged] = {}
        self.baseline: Judged | None = None
        self.last: str | None = None

    def run(self) -> None:
        for index, spec in enumerate(self.plan.pipeline.stages):
            result = self._run_stage(spec, index)
            self.results.append(result)
            self.judged[spec.name] = result.judged
            if result.outcome.recipe.quantizes:  # else it changes nothing for the stages after it
                self.last = spec.name
                if self.plan.pipeline.until == "target" and result.judged.meets_target:
                    log.info("%s meets the target: the stages after it are left out", spec.name)
                    return

    def _run_stage(self, spec: StageSpec, index: int) -> StageResult:
        previous = self.judged.get(spec.start or self.last or "")
        before = previous.outcome.recipe if previous else self.start
        with self.record.stage(spec, index) as record:
            prober = _Prober(self, _StageMonitor(spec.name, self.monitor, record))
            evidence = Evidence(self.plan.pipeline.target, self.baseline, previous, dict(self.judged), prober)
            recipe = self._rewrite(spec, before, evidence)
            record.recipe(recipe, before if previous else None)
            judged = self.execute(recipe, prober.monitor)
            assert self.baseline is not None
            baseline, probes = self.baseline.outcome, tuple(prober.probes)
            ingredients = {**self.ingredients, **recipe_ingredients(self.plan.task, judged.outcome.recipe)}
            result = StageResult(spec.name, index, judged, baseline, probes, ingredients)
            record.result(result)
        _tell(result)
        return result

    def _rewrite(self, spec: StageSpec, recipe: Recipe, evidence: Evidence) -> Recipe:
        try:
            rewritten: Recipe = self.plan.stages[spec.name](recipe, evidence, **spec.options)
        except ValidationError as cause:
            raise RecipeError(faults_of(cause, Recipe, f"stage {spec.name}")) from cause
        return rewritten

    def execute(self, recipe: Recipe, monitor: Monitor, *, thorough: bool = True) -> Judged:
        """Execute and judge; the float model is executed first where no stage has done so."""
        if self.baseline is None and recipe.quantizes:
            self.execute(recipe.with_mode("float"), monitor)
        baseline = self.baseline.outcome if self.baseline else None
        outcome = execute(self.plan.task, recipe, baseline, monitor, thorough=thorough, sizes=self.sizes)
        judged = judge(outcome, baseline or outcome, self.plan.pipeline.target)
        self.baseline = self.baseline or judged
        self.known[recipe.digest] = judged
        return judged


def _tell(result: StageResult) -> None:
    """One line on a finished stage."""
    outcome, drop = result.outcome, result.judged.drop
    answer = {True: "met", False: "missed", None: "not sure"}[result.judged.meets_target]
    log.info(
        "%s: %s %.4f, drop %.4f [%.4f, %.4f], target %s, %.1f s",
        *(result.name, outcome.metric, outcome.value, drop.value, drop.low, drop.high, answer),
        result.cost.seconds,
    )


class _StageMonitor:
    """Shows phases under the stage's name, and puts points both on screen and on record."""

    def __init__(self, stage: str, monitor: Monitor, record: StageRecord) -> None:
        self.stage = stage
        self.monitor = monitor
        self.record = record

    def phase(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        return self.monitor.phase(f"{self.stage}: {name}", total)

    def report(self, key: str, value: float, step: int) -> None:
        self.monitor.report(key, value, step)
        self.record.report(key, value, step)


class _Prober:
    """Tries recipes for a stage that searches; one that this campaign has executed already costs nothing."""

    def __init__(self, campaign: _Campaign, monitor: Monitor) -> None:
        self.campaign = campaign
        self.monitor = monitor
        self.probes: list[Judged] = []

    def __call__(self, recipe: Recipe) -> Judged:
        known = self.campaign.known.get(recipe.digest)
        if known is not None:
            return known
        judged = self.campaign.execute(recipe, self.monitor, thorough=False)
        self.probes.append(judged)
        step = len(self.probes)
        self.monitor.report(f"search/{judged.outcome.metric}", judged.outcome.value, step)
        self.monitor.report("search/float_layers", len(judged.outcome.float_layers), step)
        return judged
