"""Records a campaign while it runs: one MLflow run for it, one for each stage."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from qtrack.errors import StoreError
from qtrack.ingredients import execution_key
from qtrack.ledger import models
from qtrack.ledger.diagnoses import diagnosis_tags, write_diagnosis
from qtrack.ledger.files import (
    masked,
    plain,
    write_json,
    write_recipe,
    write_results,
    write_table,
    write_text,
)
from qtrack.ledger.journal import now_ms
from qtrack.ledger.logs import Lines, captured
from qtrack.ledger.metrics import points_of
from qtrack.ledger.names import CAMPAIGN, STAGE, TARGET_MET, File, Shown, Tag, params_of
from qtrack.ledger.notes import campaign_note, headline, stage_note
from qtrack.ledger.outcomes import write_outcome
from qtrack.ledger.preflight import disk_is_full
from qtrack.ledger.references import reference_of
from qtrack.ledger.rows import RunRow
from qtrack.ledger.run import OpenRun
from qtrack.ledger.spool import Ended, Spool
from qtrack.ledger.strategy import Strategy, strategy_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qtrack.data import SplitInfo
    from qtrack.finding import Diagnosis
    from qtrack.pipeline import StageSpec
    from qtrack.recipe import Recipe
    from qtrack.records import Setting, StageResult

    Figures = Callable[[StageResult], Iterable[tuple[str, Figure]]]
    Report = Callable[[Sequence[Strategy], Sequence[StageResult], Mapping[str, Any]], str]

log = logging.getLogger("qtrack")

FIGURE_DPI = 120


@contextmanager
def recorded_campaign(
    spool: Spool,
    setting: Setting,
    figures: Figures | None,
    report: Report | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[CampaignWriter]:
    """Open the campaign's own run, and end it with what its stages came to; all its runs have the tags."""
    with captured() as lines, spool.session():
        campaign = CampaignWriter(spool, setting, figures, report, lines, tags or {})
        with campaign.run.kept():
            campaign.begin()
            with spool.begun():
                try:
                    yield campaign
                finally:
                    campaign.finish()


class CampaignWriter:
    """Implements CampaignRecord."""

    def __init__(
        self,
        spool: Spool,
        setting: Setting,
        figures: Figures | None,
        report: Report | None,
        lines: Lines,
        tags: Mapping[str, str],
    ) -> None:
        from qtrack.engine.digests import architecture_of

        self.spool = spool
        self.setting = setting
        self.figures = figures
        self.report = report
        self.lines = lines
        self.given = tags
        self.id = _campaign_id(setting.plan.pipeline.name)
        float_weights = setting.plan.task.model().state_dict()
        self.fingerprint = task_fingerprint(setting, float_weights)
        self.architecture = architecture_of(float_weights)
        self.stage_of_recipe: dict[str, str] = {}
        self.results: Sequence[StageResult] = ()
        self.runs: dict[str, OpenRun] = {}
        """Of the stages that were executed, by their names."""
        self.experiment = spool.store.experiment_for(setting.plan.task.name)
        self.run = OpenRun(spool, self.experiment, self.id, self.tags(CAMPAIGN), lines)

    def tags(self, kind: str) -> dict[str, str]:
        """What all runs of the campaign have in common."""
        pipeline = self.setting.plan.pipeline
        git = self.setting.environment.get("git") or {}
        tags = {
            Tag.KIND: kind,
            Tag.CAMPAIGN: self.id,
            Tag.PIPELINE: pipeline.name,
            Tag.TASK_FINGERPRINT: self.fingerprint,
            Tag.ARCHITECTURE: self.architecture,
            Tag.METRIC: self.setting.plan.task.metric,
            Tag.MAX_DROP: repr(pipeline.target.max_drop),
            Tag.CONFIDENCE: repr(pipeline.target.confidence),
            Shown.SOURCE: "qtrack",
            Shown.SOURCE_TYPE: "LOCAL",
            Shown.USER: _user(),
            **self.given,
        }
        if pipeline.device != "cpu":
            tags[Tag.DEVICE] = pipeline.device
        if git.get("commit"):
            tags |= {Tag.GIT_COMMIT: git["commit"], Shown.COMMIT: git["commit"]}
            tags |= {Tag.GIT_DIRTY: str(bool(git.get("dirty"))).lower()}
        return tags

    def begin(self) -> None:
        """What is known before the first stage."""
        with self.run.files() as folder:
            resolved = _pipeline_text(self.setting)
            write_text(folder / File.PIPELINE, self.setting.plan.source or resolved)
            write_text(folder / File.RESOLVED, resolved)
            write_json(folder / File.ENVIRONMENT, self.setting.environment)

    @contextmanager
    def stage(self, spec: StageSpec, index: int) -> Iterator[StageWriter]:
        """A stage's record: a run once it begins, or once it fails; else none."""
        with ExitStack() as stack:
            stage = StageWriter(self, spec, index, stack)
            try:
                yield stage
            except BaseException:
                stage.begin()
                raise

    def refer(self, result: StageResult) -> None:
        """A tag on the campaign's own run, by which readers find the run that stands for the stage."""
        self.stage_of_recipe[result.outcome.recipe.digest] = result.name
        self.run.log(tags={f"{Tag.REFERS}{result.index}": reference_of(result).to_json()})

    def diagnosed(self, result: StageResult, found: Diagnosis) -> None:
        """With the stage's own run, wherever that is."""
        if result.known:
            run = Ended(self.experiment, result.known.stage, result.known.run_id, "")
        else:
            run = self.runs[result.name].ended
        write_diagnosis(self.spool, run, found)

    def summary(self, results: Sequence[StageResult]) -> None:
        """Kept until the end: this may be called while an exception is on its way."""
        self.results = tuple(results)

    def strategies(self) -> list[Strategy]:
        """The stages that have finished, as they will read once the store has them."""
        return [self._strategy(result) for result in self.results]

    def _strategy(self, result: StageResult) -> Strategy:
        tags = self.tags(STAGE) | _recipe_tags(result.outcome.recipe) | _result_tags(result)
        tags |= {Tag.STAGE: result.name, Tag.INDEX: str(result.index)}
        tags |= diagnosis_tags(result.diagnosis) if result.diagnosis else {}
        run_id = result.known.run_id if result.known else ""
        metrics = {point.key: point.value for point in points_of(result)}
        run = RunRow(run_id, result.name, self.experiment, "FINISHED", now_ms(), tags, metrics)
        return strategy_of(run, self.setting.plan.task.name)

    def finish(self) -> None:
        """Write the summary; where even the disk does not take it, that is no second error."""
        try:
            with self.run.files() as folder:
                write_json(folder / File.SUMMARY, [_summary(result) for result in self.results])
                self._report(folder)
            self.run.log(tags={Shown.NOTE: campaign_note(self.id, self.results)})
        except StoreError as error:
            log.warning("the summary could not be recorded: %s", error)

    def _report(self, folder: Path) -> None:
        """The page of what finished; an extra: one that fails is a warning."""
        if self.report is None or not self.results:
            return
        try:
            environment = masked(plain(self.setting.environment))
            page = self.report(self.strategies(), self.results, environment)
            (folder / File.REPORT).write_text(page, encoding="utf-8", errors="replace")
        except Exception as error:
            (folder / File.REPORT).unlink(missing_ok=True)
            log.warning("the report could not be written: %s: %s", type(error).__name__, error)


class StageWriter:
    """Implements StageRecord."""

    def __init__(self, campaign: CampaignWriter, spec: StageSpec, index: int, stack: ExitStack) -> None:
        self.campaign = campaign
        self.spec = spec
        self.index = index
        self.tables: dict[str, None] = {}
        """Names of those that a search has left, in their order."""
        self._stack = stack
        self._run: OpenRun | None = None

    @property
    def run(self) -> OpenRun:
        """Opened where the stage has not begun."""
        self.begin()
        assert self._run
        return self._run

    def begin(self) -> None:
        """Open the run, complete in its tags; data and environment stand on record before the work."""
        if self._run is not None:
            return
        campaign = self.campaign
        opened = OpenRun(campaign.spool, campaign.experiment, self.spec.name, self._tags(), campaign.lines)
        self._run = campaign.runs[self.spec.name] = self._stack.enter_context(opened.kept())
        campaign.lines.note(f"stage {self.spec.name!r} begins: run {self.run.id or 'not in the store yet'}")
        self.run.datasets([_dataset(campaign.setting, split) for split in campaign.setting.splits.values()])
        with self.run.files() as folder:
            write_json(folder / File.ENVIRONMENT, campaign.setting.environment)

    def _tags(self) -> dict[str, str]:
        tags = self.campaign.tags(STAGE) | _recipe_tags(self.campaign.setting.plan.pipeline.recipe)
        tags |= {Tag.STAGE: self.spec.name, Tag.INDEX: str(self.index), Tag.USE: self.spec.use}
        return tags | ({Tag.STARTED_FROM: self.spec.start} if self.spec.start else {})

    def recipe(self, recipe: Recipe, previous: Recipe | None) -> None:
        """Recorded at once, so that a crash leaves it behind."""
        before = self._started_from(previous)
        with self.run.files() as folder:
            write_recipe(folder, recipe, previous, (before, self.spec.name))
        self.campaign.lines.note(f"recipe {recipe.digest[:12]}, from {before}")
        calibration = self.campaign.setting.splits.get("calibration")
        params = params_of(recipe, calibration.samples if calibration else 0)
        self.run.log(params=params, tags=_recipe_tags(recipe) | {Tag.STARTED_FROM: before})

    def _started_from(self, previous: Recipe | None) -> str:
        if previous is None:
            return "pipeline"
        return self.spec.start or self.campaign.stage_of_recipe.get(previous.digest, "before")

    def report(self, key: str, value: float, step: int) -> None:
        """A point on a curve."""
        self.run.report(key, value, step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """As a file that MLflow's UI compares between runs; in place of one of the same name."""
        with self.run.files() as folder:
            write_table(folder / f"{name}.json", list(rows[0]) if rows else [], rows)
        self.tables[f"{name}.json"] = None

    def result(self, result: StageResult) -> None:
        """Numbers first, then files; each in as few calls as there can be."""
        outcome = result.outcome
        self.campaign.stage_of_recipe[outcome.recipe.digest] = result.name
        for warning in outcome.warnings:
            log.warning("%s: %s", result.name, warning)
        params = {"float_layers": str(len(outcome.float_layers))}
        self.campaign.lines.note(f"{headline(result)}; {result.cost.seconds:.1f} s")
        self.run.log(points_of(result), params=params, tags=_result_tags(result))
        with self.run.files() as folder:
            tables = write_results(folder, result, self.campaign.setting, self.campaign.fingerprint)
            write_outcome(folder, outcome, result.baseline, result.also)
            self._draw(folder, result)
            plan = self.campaign.setting.plan
            saved = models.save(
                plan.task, outcome, folder / File.MODEL, plan.pipeline.task, self.run.id or ""
            )
        self.campaign.lines.note(f"model {saved}")
        self.run.log(
            tags={
                Tag.MODEL: saved,
                Shown.TABLES: _table_tag([*tables, *self.tables]),
                Shown.NOTE: stage_note(self.campaign.id, result),
            }
        )

    def _draw(self, folder: Path, result: StageResult) -> None:
        """Figures are an extra: one that fails is a warning, unless the disk is full."""
        try:
            for name, figure in self.campaign.figures(result) if self.campaign.figures else ():
                (folder / File.FIGURES).mkdir(exist_ok=True)
                figure.savefig(folder / File.FIGURES / f"{name}.png", dpi=FIGURE_DPI)
        except Exception as error:
            if disk_is_full(error):
                raise
            log.warning("%s: a figure could not be drawn: %s: %s", result.name, type(error).__name__, error)


def task_fingerprint(setting: Setting, float_weights: Mapping[str, Any]) -> str:
    """Digest over the splits and the float weights: equal means that figures can be compared."""
    from qtrack.engine.digests import digest_of

    parts = [f"{name}:{split.digest}" for name, split in sorted(setting.splits.items())]
    parts.append(f"float_weights:{digest_of(float_weights)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _campaign_id(pipeline: str) -> str:
    """Readable, sorted by time within a pipeline, and without the slash that parts it from a stage's name."""
    name = re.sub(r"[^\w.-]+", "-", pipeline).strip("-.")[:40] or "campaign"
    return f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _pipeline_text(setting: Setting) -> str:
    """The pipeline as it runs, as a pipeline file."""
    return str(yaml.safe_dump(setting.plan.pipeline.model_dump(mode="json"), sort_keys=False))


def _recipe_tags(recipe: Recipe) -> dict[str, str]:
    tags = {Tag.RECIPE_DIGEST: recipe.digest, Tag.BACKEND: recipe.backend}
    return tags | ({Tag.ENGINE: recipe.engine} if recipe.engine else {})


def _result_tags(result: StageResult) -> dict[str, str]:
    worst = result.outcome.worst_layer
    tags = {
        Tag.TARGET_MET: TARGET_MET[result.judged.meets_target],
        Tag.SAMPLES: str(result.judged.drop.samples),
    }
    tags[Tag.METRIC] = result.outcome.metric
    key = execution_key(result.ingredients)
    tags |= {Tag.EXECUTION: key} if key else {}
    tags |= {Tag.QUESTION: result.question} if result.question else {}
    tags |= {Tag.USE: result.followed} if result.followed else {}
    tags |= {Tag.SEARCH: result.searched.ended} if result.searched else {}
    return tags | ({Tag.WORST_LAYER: worst.layer} if worst else {})


def _table_tag(paths: Iterable[str]) -> str:
    return json.dumps([{"path": path, "type": "table"} for path in paths])


def _dataset(setting: Setting, split: SplitInfo) -> dict[str, str]:
    """As the journal keeps it: fields of MLflow's Dataset, and what it is used for."""
    profile = {
        "samples": split.samples,
        "batches": split.batches,
        "batch_size": split.batch_size,
        "sha256": split.digest,
        "per_class": {str(label): count for label, count in split.per_class.items()},
    }
    return {
        "context": split.name,
        "name": f"{setting.plan.task.name}/{split.name}",
        "digest": split.digest[:36],  # as many as MLflow keeps
        "source_type": "code",
        "source": json.dumps({"task": setting.plan.pipeline.task, "split": split.name}),
        "profile": json.dumps(profile),
    }


def _summary(result: StageResult) -> dict[str, Any]:
    outcome, drop = result.outcome, result.judged.drop
    return {
        "stage": result.name,
        "metric": outcome.metric,
        "value": outcome.value,
        "drop": drop.value,
        "drop_low": drop.low,
        "drop_high": drop.high,
        "target_met": result.judged.meets_target,
        "float_layers": len(outcome.float_layers),
        "size_bytes": outcome.size_bytes,
        "seconds": result.cost.seconds,
        "recipe_digest": outcome.recipe.digest,
    }
