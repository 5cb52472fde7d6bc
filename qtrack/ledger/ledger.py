"""The ledger as the rest of qtrack sees it: opened once, written to by campaigns, read by everything else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtrack.errors import PipelineError, RecipeError, RunNotFound, StoreError
from qtrack.ledger import registry
from qtrack.ledger.artifacts import Artifacts, corrupt, shown
from qtrack.ledger.diagnoses import ended, read_diagnosis, write_diagnosis
from qtrack.ledger.files import read_json, read_layers, read_prices
from qtrack.ledger.links import links_of
from qtrack.ledger.names import CAMPAIGN, File, Tag
from qtrack.ledger.outcomes import NEEDED, Samples, read_outcome, read_samples
from qtrack.ledger.read import Reader
from qtrack.ledger.repair import STALE_S, Repaired, repair
from qtrack.ledger.reproductions import ReproductionWriter, recorded_of, recorded_reproduction
from qtrack.ledger.room import check_room
from qtrack.ledger.rows import Query, RunRow
from qtrack.ledger.spool import Recovered, Spool
from qtrack.ledger.store import Store, absent_file, open_store
from qtrack.ledger.strategy import Strategy, strategy_of
from qtrack.ledger.timeline import timeline
from qtrack.ledger.views import share
from qtrack.ledger.winners import MOST_WINNERS, winning_runs
from qtrack.ledger.worked import tried_remedies
from qtrack.reading import load_yaml, parse
from qtrack.recipe import Recipe, recipe_from_yaml
from qtrack.records import Known

log = logging.getLogger("qtrack")

if TYPE_CHECKING:
    from torch import nn

    from qtrack.finding import Diagnosis, Worked
    from qtrack.ledger.registry import Promotion
    from qtrack.ledger.write import CampaignWriter, Figures, Report
    from qtrack.pipeline import Pipeline
    from qtrack.records import Setting
    from qtrack.reproduction import Recorded
    from qtrack.task import Task


MAX_RECORD_BYTES = 64_000_000
REMEMBERED = 2000
"""Of the latest stages: a store of any size is read in the same memory."""


class Ledger:
    """A tracking store that answered; implements the campaign's Recorder."""

    def __init__(self, store: Store, figures: Figures | None = None, report: Report | None = None) -> None:
        self._store = store
        self._reader = Reader(store)
        self._artifacts = Artifacts(store)
        self._spool = Spool(store)
        self._figures = figures
        self._report = report

    @classmethod
    def open(
        cls,
        uri: str | None = None,
        *,
        figures: Figures | None = None,
        report: Report | None = None,
        folder: Path | None = None,
    ) -> Ledger:
        """Open the store at a URI, at MLFLOW_TRACKING_URI, or by default ``mlflow.db`` in the working folder.

        ``figures`` draws what is to be recorded with each stage, ``report`` makes the page that is recorded
        with the campaign. Raises StoreError, in seconds.
        """
        return cls(open_store(uri, folder), figures, report)

    @classmethod
    def open_existing(cls, uri: str | None = None) -> Ledger | None:
        """The same, only to read; None where there is no database yet, which is not made."""
        return None if absent_file(uri) else cls(open_store(uri))

    @property
    def uri(self) -> str:
        """Of the store, with whatever secrets it holds: mask it before it is shown."""
        return self._store.uri

    @property
    def seconds(self) -> float:
        """Wall time spent inside MLflow so far."""
        return self._store.seconds

    def campaign(self, setting: Setting) -> AbstractContextManager[CampaignWriter]:
        """Open a campaign's record."""
        from qtrack.ledger.write import recorded_campaign

        check_room(self._store.home, setting)
        self._tidy(setting.plan.task.name)
        return recorded_campaign(self._spool, setting, self._figures, self._report)

    @property
    def scratch(self) -> Path:
        """A folder for what an interrupted campaign need not do again."""
        return self._store.home / "scratch"

    def known(self, task: Task, *, question: str | None = None, execution: str | None = None) -> Known | None:
        """The finished stage with this question or execution on record, read back whole; None where none is.

        One that is not whole any more is passed over, with a warning. A store that has just not answered is
        not asked.
        """
        if self._spool.resting:
            return None
        tag, key = (Tag.QUESTION, question) if question else (Tag.EXECUTION, execution)
        try:
            with self._spool.asking():
                experiment = self._store.experiment_named(task.name)
                ids = [experiment.experiment_id] if experiment else []
                found = next(self._reader.finished(ids, {tag: str(key)}, latest_first=True), None)
            return self._known(found, task) if found else None
        except StoreError as error:
            log.warning("%s: it is executed again", error)
        return None

    def _known(self, run: RunRow, task: Task) -> Known:
        def build() -> nn.Module:
            return self.model(run.run_id, task)

        with self._artifacts.copies(run, NEEDED, [File.TEST_SAMPLES]) as folder:
            try:
                kept = read_outcome(folder, build)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise corrupt(run, "the record", error) from error
        stage, campaign, key = (run.tags.get(tag, "") for tag in (Tag.STAGE, Tag.CAMPAIGN, Tag.EXECUTION))
        found = self._known_diagnosis(run)
        return Known(run.run_id, stage, campaign, key, kept.outcome, kept.cost, found, kept.also)

    def _known_diagnosis(self, run: RunRow) -> Diagnosis | None:
        """A damaged one is no reason to execute the stage again."""
        try:
            return read_diagnosis(self._artifacts, run)
        except StoreError as error:
            log.warning("%s", error)
            return None

    def winners(self, task: Task) -> list[Recipe]:
        """What searches ended with that met their target, of the task or another of the same architecture.

        Those of the task's own experiment first, and of each the latest; a few. One that cannot be read is
        passed over, with a warning. A store that has just not answered is not asked.
        """
        found: list[Recipe] = []
        for run in self._winning_runs(task):
            if len(found) == MOST_WINNERS or self._spool.resting:
                break
            try:
                with self._spool.asking():
                    found.append(self._recipe(run))
            except StoreError as error:
                log.warning("%s: no search begins with it", error)
        return found

    def _winning_runs(self, task: Task) -> list[RunRow]:
        from qtrack.engine.digests import architecture_of

        if self._spool.resting:
            return []
        architecture = architecture_of(task.model().state_dict())
        try:
            with self._spool.asking():
                experiments = self._reader.experiments()
                own = next((id for id, name in experiments.items() if name == task.name), None)
                return winning_runs(self._reader, own, experiments, architecture)
        except StoreError as error:
            log.warning("what earlier searches came to is not known: %s", error)
            return []

    def sync(self) -> list[Recovered]:
        """Send what earlier processes could not, in order and each value once."""
        return self._spool.recover()

    def experiment_for(self, name: str) -> str:
        """The id of an experiment, created where there is none."""
        return self._store.experiment_for(name)

    def take(self, packed: bytes) -> list[Recovered]:
        """Send what a worker has recorded, as ``held`` has packed it; what the store does not take waits."""
        from qtrack.ledger.held import unpack

        unpack(packed, self._spool.folder)
        return self.sync()

    def swept(self, sweep: str) -> dict[str, str]:
        """The jobs of a sweep that have finished, with the campaign of each."""
        runs = self._reader.source.runs(
            Query(list(self._experiments()), {Tag.KIND: CAMPAIGN, Tag.SWEEP: sweep}, status="FINISHED")
        )
        return {run.tags[Tag.JOB]: run.tags[Tag.CAMPAIGN] for run in runs}

    def repair(self, experiment: str | None = None, older_than_s: float = STALE_S) -> list[Repaired]:
        """End runs that are dead; the result has the running ones as well."""
        return repair(self._store, self._reader, list(self._experiments(experiment)), older_than_s)

    @property
    def waiting(self) -> int:
        """Runs of the last campaign that the store has not all of."""
        return self._spool.waiting

    def _tidy(self, experiment: str) -> None:
        """Before new work: what earlier processes left behind is sent and ended."""
        for found in self.sync():
            said = f"still waits: {found.trouble}" if found.trouble else f"sent {found.entries} entries"
            log.info("record of the run %s, left by a process that is gone: %s", found.name, said)
        if self._store.experiment_named(experiment) is not None:
            for run in self.repair(experiment):
                if run.ended:
                    log.info("the run %s (%s) was dead: ended as KILLED", run.name, run.run_id[:8])

    def experiment_names(self) -> list[str]:
        """Of all experiments that were not deleted."""
        return sorted(self._reader.experiments().values())

    def strategies(
        self, runs: Sequence[str] = (), experiment: str | None = None, campaign: str | None = None
    ) -> list[Strategy]:
        """The runs named, or the stages of a campaign: the one named, or the latest (of the experiment)."""
        experiments = self._experiments(experiment)
        ids = list(experiments)
        if runs:
            found = [self._reader.run(reference, ids) for reference in runs]
        else:
            found = self._reader.stages(self._campaign(campaign, experiment, ids))
        return [strategy_of(run, experiments[run.experiment_id]) for run in found]

    def finished(self, experiment: str) -> list[Strategy]:
        """All stages of an experiment that finished, of all its campaigns, the oldest first."""
        experiments = self._experiments(experiment)
        found = self._reader.finished(list(experiments))
        return [strategy_of(run, experiments[run.experiment_id]) for run in found]

    def timeline(self, experiment: str, stage: str | None = None, most: int | None = None) -> list[Strategy]:
        """The same, and those that a campaign did not execute but referred to, at that campaign's time.

        Of all, or of those with this name, no more than ``most``, else REMEMBERED, and those the latest.
        """
        experiments = self._experiments(experiment)
        found = timeline(self._reader, list(experiments), most or REMEMBERED, stage)
        return [strategy_of(run, experiments[run.experiment_id]) for run in found]

    def executed(self, experiment: str, recipe: Recipe) -> list[Strategy]:
        """Finished stages with just this recipe, the latest first; none in an experiment that is unknown."""
        found = self._store.experiment_named(experiment)
        if found is None:
            return []
        wanted = {Tag.RECIPE_DIGEST: recipe.digest}
        runs = self._reader.finished([found.experiment_id], wanted, latest_first=True)
        return [strategy_of(run, experiment) for run in runs]

    def layers(self, reference: str) -> list[dict[str, Any]]:
        """The layer table of a run, in execution order."""
        run = self._run(reference)
        try:
            return read_layers(self._artifacts.text(run, File.LAYERS))
        except ValueError as error:
            raise corrupt(run, File.LAYERS, error) from error

    def prices(self, reference: str) -> list[dict[str, Any]]:
        """What each layer costs on each rung, as the run measured it; raises StoreError where it has not."""
        run = self._run(reference)
        with self._artifacts.copies(run, [], [File.PRICES]) as folder:
            path = folder / File.PRICES
            if not path.exists():
                raise StoreError(f"the run {shown(run)} has no prices: a ladder stage measures them")
            try:
                return read_prices(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise corrupt(run, File.PRICES, error) from error

    def recipe(self, reference: str) -> Recipe:
        """The recipe that a run executed."""
        return self._recipe(self._run(reference))

    def _recipe(self, run: RunRow) -> Recipe:
        try:
            return recipe_from_yaml(self._artifacts.text(run, File.RECIPE), File.RECIPE)
        except RecipeError as error:
            raise corrupt(run, File.RECIPE, error) from error

    def pipeline(self, reference: str) -> Pipeline:
        """The pipeline that a run was a stage of, with everything that was set when it was run."""
        from qtrack.pipeline import Pipeline

        run = self._run(reference)
        owner = self._reader.campaign_run(run.tags.get(Tag.CAMPAIGN, ""), [run.experiment_id])
        try:
            data = load_yaml(self._artifacts.text(owner, File.RESOLVED), File.RESOLVED, PipelineError)
            return parse(Pipeline, data, File.RESOLVED, PipelineError)
        except PipelineError as error:
            raise corrupt(owner, File.RESOLVED, error) from error

    def recorded(self, reference: str) -> Recorded:
        """What reproducing a run needs; raises StoreError where the run has not left it."""
        run = self._run(reference)
        layers = tuple(row["layer"] for row in self.layers(run.run_id))
        with self._artifacts.copy(run, File.SAMPLES) as samples:
            return recorded_of(run, self.recipe(run.run_id), self._fingerprint(run), samples, layers)

    def samples(self, reference: str) -> Samples:
        """What a run's model and the float model did on each validation sample."""
        run = self._run(reference)
        with self._artifacts.copy(run, File.SAMPLES) as path:
            try:
                return read_samples(path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise corrupt(run, File.SAMPLES, error) from error

    def environment(self, reference: str) -> dict[str, Any]:
        """Where a run was executed, without secrets."""
        run = self._run(reference)
        try:
            return read_json(self._artifacts.text(run, File.ENVIRONMENT))
        except ValueError as error:
            raise corrupt(run, File.ENVIRONMENT, error) from error

    def tags(self, strategies: Sequence[Strategy]) -> dict[str, Mapping[str, str]]:
        """The tags of each strategy's run, by its id."""
        ids = [strategy.run_id for strategy in strategies]
        found = self._reader.with_ids(ids, list(self._experiments()))
        return {run_id: run.tags for run_id, run in found.items()}

    def model(self, reference: str, task: Task) -> nn.Module:
        """The model that a run saved, built from the task and checked; raises StoreError in one line."""
        from qtrack.ledger.models import load_checked

        run = self._run(reference)
        saved = run.tags.get(Tag.MODEL, "not saved")
        if saved != "saved":
            raise StoreError(f"the run {shown(run)} has no saved model: {saved}")
        fingerprint = self._fingerprint(run)
        with self._artifacts.copy(run, File.MODEL) as folder:
            try:
                return load_checked(task, folder, fingerprint)
            except StoreError as error:
                raise StoreError(f"the run {shown(run)}: {error}") from error

    def promote(self, reference: str, name: str, alias: str) -> Promotion:
        """Put an alias of a registered model on a run's model."""
        registry.check_names(name, alias)
        run = self._run(reference)
        strategy = strategy_of(run, self._experiments()[run.experiment_id])
        return registry.promote(self._store, run, strategy, name, alias)

    def reproduction(self, recorded: Recorded) -> AbstractContextManager[ReproductionWriter]:
        """Open the record of a stage's second execution."""
        return recorded_reproduction(self._spool, self._run(recorded.run_id), recorded)

    def record_diagnosis(self, reference: str, found: Diagnosis) -> None:
        """Keep it with the run that it is about, in the place of an earlier one."""
        run = self._run(reference)
        if run.status != "FINISHED":
            raise StoreError(f"the run {shown(run)} has not finished: a diagnosis is not recorded with it")
        with self._spool.session(), self._spool.begun():
            write_diagnosis(self._spool, ended(run), found)

    def diagnosis(self, reference: str) -> Diagnosis | None:
        """What was found about a run; None where it was not diagnosed."""
        return read_diagnosis(self._artifacts, self._run(reference))

    def worked(self, experiment: str | None = None) -> Callable[[str], Mapping[str, Worked]]:
        """Says of a cause how often each stage, by its function, has won back half of the drop or more.

        The store is asked once, when a cause is; one that does not answer knows nothing, with a warning.
        """

        @cache
        def tried() -> Mapping[str, Mapping[str, Worked]]:
            try:
                with self._spool.asking():
                    return tried_remedies(
                        timeline(self._reader, list(self._experiments(experiment)), REMEMBERED)
                    )
            except (StoreError, RunNotFound) as error:
                log.warning("what worked in earlier runs is not known: %s", error)
                return {}

        return lambda cause: tried().get(cause, {})

    def _fingerprint(self, run: RunRow) -> dict[str, Any]:
        try:
            return read_json(self._artifacts.text(run, File.FINGERPRINT))
        except ValueError as error:
            raise corrupt(run, File.FINGERPRINT, error) from error

    def links(self, strategies: Sequence[Strategy]) -> dict[str, str]:
        """Pages of MLflow's UI that compare these strategies: fragments to put after its address."""
        ids = {name: experiment for experiment, name in self._reader.experiments().items()}
        return links_of(strategies, ids)

    def share_views(self, strategies: Sequence[Strategy]) -> dict[str, str]:
        """Pages of these strategies with columns and charts chosen, which the experiment then keeps.

        Fragments like ``links``. Raises StoreError where the store may not be written.
        """
        ids = {name: experiment for experiment, name in self._reader.experiments().items()}
        return share(self._store, ids[strategies[0].experiment], strategies) if strategies else {}

    def _experiments(self, name: str | None = None) -> dict[str, str]:
        """Names by id: of the one experiment, or of all."""
        if name is None:
            return self._reader.experiments()
        found = self._store.experiment_named(name)
        if found is None:
            known = ", ".join(self.experiment_names())
            raise RunNotFound(f"no experiment {name!r}; there are {known}")
        return {found.experiment_id: found.name}

    def _campaign(self, reference: str | None, experiment: str | None, ids: Sequence[str]) -> RunRow:
        if reference is not None:
            return self._reader.campaign_named(reference, ids)
        for latest in self._reader.campaigns(ids, 1):
            return latest
        where = f"in the experiment {experiment!r}" if experiment else f"in {self._store}"
        raise RunNotFound(f"no campaign is recorded {where}; start one with: qtrack run PIPELINE.yaml")

    def _run(self, reference: str) -> RunRow:
        return self._reader.run(reference, list(self._experiments()))
