"""One execution of a pipeline, stage by stage.

The campaign knows the order of things and nothing of MLflow or terminals: what happens is told to a Recorder,
which the ledger implements, and to a Monitor.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from qtrack import diagnosis
from qtrack.ahead import Ahead, Wanted
from qtrack.budget import Budget
from qtrack.data import inspect_splits, overlaps
from qtrack.engine import check_forward, execute, settled, torch_threads, using_device
from qtrack.environment import environment
from qtrack.executors import Executor
from qtrack.finding import Diagnosis
from qtrack.ingredients import common_ingredients
from qtrack.monitor import SILENT, Advance, Monitor
from qtrack.outcome import Outcome, Until
from qtrack.pipeline import Plan, StageSpec, further_name
from qtrack.recall import Memory
from qtrack.recipe import Recipe
from qtrack.records import CampaignRecord, Known, Recorder, Setting, StageRecord, StageResult
from qtrack.rewriting import foreseen, rewritten
from qtrack.scratch import Scratch
from qtrack.searching import Prober, Purse
from qtrack.services import Asked, Diagnoser, Pricer, Sensor, total
from qtrack.stages import Evidence, Judged, judge
from qtrack.stages.evidence import nothing_to_diagnose

log = logging.getLogger("qtrack")


def run_plan(
    plan: Plan,
    recorder: Recorder,
    monitor: Monitor = SILENT,
    *,
    scratch: Scratch | None = None,
    fresh: bool = False,
    budget: Budget | None = None,
    executor: Executor | None = None,
) -> list[StageResult]:
    """Run all stages in order and record each; data and model are checked before any record is opened.

    A stage whose ingredients equal those of a finished one on record is referred to, not executed, unless it
    must be ``fresh``. What an interrupted one left in ``scratch`` is not done again either. Searches end
    with their ``budget``. Workers of an ``executor`` begin on what can be foreseen, and share long
    evaluations; the task must then be one that they can load by its name. Raises InputError where the
    pipeline's device is not here.
    """
    if executor and executor.aside and plan.pipeline.threads is None:  # so that all execute alike
        plan = replace(plan, pipeline=plan.pipeline.model_copy(update={"threads": 1}))
    scratch = scratch or Scratch()
    scratch.tidy()
    with torch_threads(plan.pipeline.threads), using_device(plan.pipeline.device):
        setting = _inspect(plan, monitor)
        with recorder.campaign(setting) as record:
            memory = Memory(setting, recorder, scratch, fresh=fresh)
            ahead = Ahead(setting, executor, memory.checkpoint)
            campaign = _Campaign(setting, record, monitor, memory, Purse(budget or Budget()), ahead)
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

    def __init__(
        self,
        setting: Setting,
        record: CampaignRecord,
        monitor: Monitor,
        memory: Memory,
        purse: Purse,
        ahead: Ahead,
    ) -> None:
        self.plan = plan = setting.plan
        self.sizes = {name: split.samples for name, split in setting.splits.items()}
        self.record = record
        self.monitor = monitor
        self.memory = memory
        self.purse = purse
        self.ahead = ahead
        self.start = settled(plan.pipeline.recipe)
        self.results: list[StageResult] = []
        self.judged: dict[str, Judged] = {}
        self.tried: dict[str, Judged] = {}
        """By recipe, stages and probes alike."""
        self.measured: dict[str, Any] = {}
        self.baseline: Judged | None = None
        self.last: str | None = None

    def run(self) -> None:
        if self.ahead:
            self.ahead.plan(Wanted(one) for one in foreseen(self.plan) if not self.memory.executed(one))
        for spec in self.plan.pipeline.stages:
            start = self._start_of(spec)
            result = self._kept(self._run_stage(spec, start))
            for number, recipe in enumerate(result.also, 2):
                self._kept(self._run_further(spec, number, start, recipe))
            if result.outcome.recipe.quantizes:  # else it changes nothing for the stages after it
                self.last = spec.name
                if self.plan.pipeline.until == "target" and result.judged.meets_target:
                    log.info("%s meets the target: the stages after it are left out", spec.name)
                    return

    def _start_of(self, spec: StageSpec) -> StageResult | None:
        return next((result for result in self.results if result.name == (spec.start or self.last)), None)

    def _kept(self, result: StageResult) -> StageResult:
        """For the stages after it."""
        self.results.append(result)
        self.judged[result.name] = result.judged
        if result.searched and result.searched.ended == "interrupted":
            raise KeyboardInterrupt  # after what it came to is on record
        return result

    def _run_further(
        self, spec: StageSpec, number: int, start: StageResult | None, recipe: Recipe
    ) -> StageResult:
        """A further answer of a stage, which no stage starts from."""
        name = further_name(spec.name, number)
        further = StageSpec(use=spec.use, name=name, start=start.name if start else None)
        known = self.memory.executed(recipe)
        if known is not None:
            return self._refer(further, known)
        with self.record.stage(further, len(self.results)) as record:
            record.recipe(recipe, start.outcome.recipe if start else None)
            monitor = _StageMonitor(name, self.monitor, record)
            return _recorded(self._execute_stage(further, recipe, monitor), record)

    def _run_stage(self, spec: StageSpec, start: StageResult | None) -> StageResult:
        previous = start.judged if start else None
        before = previous.outcome.recipe if previous else self.start
        question = self.memory.question(spec, before, self.judged)
        known = self.memory.answered(question)
        if known is not None:
            return self._refer(spec, known, known.also)
        with self.record.stage(spec, len(self.results)) as record:
            monitor = _StageMonitor(spec.name, self.monitor, record)
            asked = Asked(self.plan.task, previous, self.sizes, monitor, record, self.measured)
            diagnoser = Diagnoser(lambda: self.diagnose(start, monitor), record)
            sensor, pricer = Sensor(spec.name, asked), Pricer(asked)
            prober = Prober(spec.name, previous, self.probe, self._tried, self.purse, monitor, record)
            also: list[Recipe] = []
            evidence = Evidence(
                self.plan.pipeline.target,
                self.baseline,
                previous,
                dict(self.judged),
                probe=prober,
                plan=prober.plan,
                spared=prober.spared,
                expect=self._expect,
                propose=prober.propose,
                mixtures=sensor,
                outlook=lambda: sensor.outlook(self.baseline, self.plan.pipeline.target),
                winners=self._winners,
                diagnose=diagnoser,
                rungs=pricer,
                table=record.table,
                also=also.append,
                storage=lambda asked: self.memory.study(asked, before),
            )
            recipe = settled(prober.answer(lambda: rewritten(self.plan, spec, before, evidence)))
            measuring = total(diagnoser.cost, sensor.cost, pricer.cost)
            known = None if prober.searched or measuring else self.memory.executed(recipe)
            if known is None:
                record.recipe(recipe, before if previous else None)
                result = replace(
                    self._execute_stage(spec, recipe, monitor),
                    probes=tuple(prober.probes),
                    question=question if prober.ended is None else None,  # else more time: another answer
                    searched=prober.searched,
                    measuring=measuring,
                    followed=diagnoser.followed(recipe),
                    also=tuple(map(settled, also)),
                )
                pricer.tell(recipe)
                return _recorded(result, record)
        return self._refer(spec, known, tuple(map(settled, also)))

    def _execute_stage(self, spec: StageSpec, recipe: Recipe, monitor: Monitor) -> StageResult:
        judged = self.execute(recipe, monitor)
        assert self.baseline is not None
        ingredients = self.memory.ingredients(judged.outcome.recipe)
        return StageResult(
            spec.name, len(self.results), judged, self.baseline.outcome, ingredients=ingredients
        )

    def _refer(self, spec: StageSpec, known: Known, also: tuple[Recipe, ...] = ()) -> StageResult:
        """What is known stands for the stage, judged by this campaign's own target."""
        judged = self._judge(known.outcome, self.monitor)
        assert self.baseline is not None
        result = StageResult(
            spec.name,
            len(self.results),
            judged,
            self.baseline.outcome,
            known=known,
            diagnosis=known.diagnosis,
            also=also,
        )
        self.record.refer(result)
        _tell(result)
        return result

    def execute(
        self,
        recipe: Recipe,
        monitor: Monitor,
        *,
        thorough: bool = True,
        timed: bool = False,
        until: Until | None = None,
    ) -> Judged:
        """Execute and judge; the float model is executed first where no stage has done so."""
        self._need_baseline(recipe, monitor)
        baseline = self.baseline.outcome if self.baseline else None
        with self.memory.training(recipe) as checkpoint:
            sent = self.ahead.outcome(Wanted(recipe, thorough, timed), monitor, until)
            outcome = sent or execute(
                self.plan.task,
                recipe,
                baseline,
                monitor,
                thorough=thorough,
                timed=timed,
                until=until,
                sizes=self.sizes,
                checkpoint=checkpoint,
                elsewhere=self.ahead.parts,
            )
        return self._judge(outcome, monitor)

    def _need_baseline(self, recipe: Recipe, monitor: Monitor) -> None:
        if self.baseline is None and recipe.quantizes:
            floating = recipe.with_mode("float")
            known = self.memory.executed(floating)
            if known:
                self._judge(known.outcome, monitor)
            else:
                self.execute(floating, monitor)

    def _judge(self, outcome: Outcome, monitor: Monitor) -> Judged:
        self._need_baseline(outcome.recipe, monitor)
        baseline = self.baseline.outcome if self.baseline else outcome
        judged = judge(outcome, baseline, self.plan.pipeline.target)
        self.baseline = self.baseline or judged
        self.tried[outcome.recipe.digest] = judged
        return judged

    def _winners(self) -> list[Recipe]:
        """Of earlier campaigns: what a stage of this one came to is no memory of that kind."""
        own = {result.outcome.recipe.digest for result in self.results}
        return [recipe for recipe in self.memory.winners() if recipe.digest not in own]

    def _tried(self, recipe: Recipe) -> Judged | None:
        return self.tried.get(recipe.digest)

    def probe(self, recipe: Recipe, monitor: Monitor, timed: bool, until: Until | None) -> Judged:
        """Try a recipe: on the validation split alone, and not again if an earlier search has."""
        kept = self.memory.probe(recipe)
        if kept is not None and not (timed and kept.latency is None):
            log.info("a probe was executed before: %s %.4f", kept.metric, kept.value)
            return self._judge(kept, monitor)
        judged = self.execute(recipe, monitor, thorough=False, timed=timed, until=until)
        self.memory.keep_probe(judged.outcome)
        return judged

    def _expect(self, recipes: Sequence[Recipe], timed: bool = False) -> None:
        """What a search may try next; where all of it is executed here, this is nothing."""
        if self.ahead:
            new = (one for one in recipes if self._tried(one) is None and self.memory.probe(one) is None)
            self.ahead.guess([Wanted(one, thorough=False, timed=timed) for one in new])

    def diagnose(self, stage: StageResult | None, monitor: Monitor) -> Diagnosis:
        """What a finished stage's error comes from, recorded with its run."""
        if stage is None or not stage.outcome.recipe.quantizes:
            return nothing_to_diagnose()
        found = diagnosis.diagnose(
            self.plan.task,
            stage.outcome.recipe,
            self.plan.pipeline.target,
            subject=f"{self.record.id}/{stage.name}",
            run_id=stage.known.run_id if stage.known else None,
            worked=self.memory.recorder.worked(),
            monitor=monitor,
        )
        self.record.diagnosed(stage, found)
        self.results[stage.index] = replace(stage, diagnosis=found)
        return found


def _recorded(result: StageResult, record: StageRecord) -> StageResult:
    record.result(result)
    _tell(result)
    return result


def _tell(result: StageResult) -> None:
    """One line on a finished stage."""
    outcome, drop, known = result.outcome, result.judged.drop, result.known
    answer = {True: "met", False: "missed", None: "not sure"}[result.judged.meets_target]
    how = f"not executed again: {known.campaign}/{known.stage}" if known else f"{result.cost.seconds:.1f} s"
    log.info(
        "%s: %s %.4f, drop %.4f [%.4f, %.4f], target %s, %s",
        *(result.name, outcome.metric, outcome.value, drop.value, drop.low, drop.high, answer, how),
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
