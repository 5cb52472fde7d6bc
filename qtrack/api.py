"""``qtrack.run`` and what can be done with what it recorded, from Python as from the command line."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtrack.budget import Budget
from qtrack.campaign import run_plan
from qtrack.errors import InputError, QtrackError, RecipeError, RunNotFound, StoreError, TaskError
from qtrack.monitor import SILENT, Monitor, Titled
from qtrack.pipeline import Plan, read_plan
from qtrack.records import StageResult
from qtrack.scratch import Scratch
from qtrack.task import Task, load_recorded_task, load_task, reference_to

if TYPE_CHECKING:
    from torch import nn

    from qtrack.case import Case
    from qtrack.difference import Difference
    from qtrack.engine.exporting import Exported
    from qtrack.executors import Executor
    from qtrack.explanation import Explanation
    from qtrack.finding import Diagnosis, Finding, Worked
    from qtrack.gate import Gate
    from qtrack.history import Line
    from qtrack.ledger import Ledger, Strategy
    from qtrack.ledger.registry import Promotion
    from qtrack.ranking import Ranking
    from qtrack.recipe import Recipe
    from qtrack.reproduction import Made, Reproduction, Unproven
    from qtrack.statistics import Scores

log = logging.getLogger("qtrack")


def run(
    pipeline: Path | str | Plan,
    *,
    tracking_uri: str | None = None,
    monitor: Monitor = SILENT,
    settings: dict[str, Any] | None = None,
    fresh: bool = False,
    max_minutes: float | None = None,
    max_evaluations: int | None = None,
    executor: Executor | None = None,
) -> list[StageResult]:
    """Run a pipeline file, or a checked plan, and record every stage; ``settings`` override its fields.

    A stage that is on record with the same ingredients is not executed again unless it must be ``fresh``.
    ``max_minutes`` bounds all searches together, ``max_evaluations`` each of them. Workers of an ``executor``
    (``executors.open_executor`` gives one) begin on stages and probes before their turn.
    """
    plan = pipeline if isinstance(pipeline, Plan) else read_plan(Path(pipeline), settings)
    ledger = open_ledger(tracking_uri)
    budget = Budget(max_minutes, max_evaluations)
    scratch = Scratch(ledger.scratch)
    return run_plan(plan, ledger, monitor, scratch=scratch, fresh=fresh, budget=budget, executor=executor)


def load(run: str, task: Task | str | None = None, tracking_uri: str | None = None) -> nn.Module:
    """The model that a run recorded: a ``state_dict`` in the structure that its recipe and task give.

    The run is named as on the command line. The task is the recorded one, found as ``qtrack reproduce`` finds
    it, unless it is given: a Task, ``package.module:Class`` or ``file.py:Class``. Nothing is unpickled but
    tensors. Where the recipe names another engine than torch's own choice, set
    ``torch.backends.quantized.engine`` to it before the model is called.

    Raises RunNotFound, TaskError where the task is not found, and StoreError where the run has no saved model
    or its recipe or parameters have another digest than on record.
    """
    from qtrack.ledger import Ledger

    ledger = Ledger.open(tracking_uri)
    return ledger.model(run, task_of(ledger, run, task))


def export_model(
    run: str, path: Path | str, task: Task | str | None = None, *, tracking_uri: str | None = None
) -> Exported:
    """Write the model that a run recorded as a ``.pt2`` file, which needs neither task nor qtrack.

    Raises what ``load`` raises, and BackendError where torch cannot export the model.
    """
    from qtrack.engine.exporting import export_model
    from qtrack.ledger import Ledger

    ledger = Ledger.open(tracking_uri)
    found = task_of(ledger, run, task)
    return export_model(found, ledger.recipe(run), ledger.model(run, found), Path(path))


def promote(run: str, name: str, alias: str = "champion", *, tracking_uri: str | None = None) -> Promotion:
    """Put an alias of a model in MLflow's registry on the model of a run; both are made where there is none.

    Raises RunNotFound, InputError on a name that MLflow cannot hold, and StoreError where the run has not
    finished or has no saved model.
    """
    from qtrack.ledger import Ledger

    return Ledger.open(tracking_uri).promote(run, name, alias)


def history(
    experiment: str | None = None,
    stage: str | None = None,
    *,
    last: int | None = None,
    tracking_uri: str | None = None,
) -> list[Line]:
    """Each strategy's finished stages over time, of the latest campaign's experiment unless it is named.

    No more than the ``last`` of them, or 2,000. Raises RunNotFound where there is no such experiment or
    stage.
    """
    from qtrack.history import history
    from qtrack.ledger import Ledger

    ledger = Ledger.open(tracking_uri)
    name = experiment or ledger.strategies()[0].experiment
    found = _with_a_value(ledger.timeline(name, stage, last))
    if not found:
        finished = _with_a_value(ledger.timeline(name))
        known = ", ".join(dict.fromkeys(strategy.stage for strategy in finished))
        there = f" called {stage!r}; there are {known}" if finished else ""
        raise RunNotFound(f"the experiment {name!r} has no finished stage{there}")
    return history(found, ledger.recorded)


def _with_a_value(strategies: Sequence[Strategy]) -> list[Strategy]:
    return [strategy for strategy in strategies if strategy.value is not None]


def gate(
    run: str | None = None,
    against: str = "champion",
    name: str | None = None,
    *,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    tracking_uri: str | None = None,
) -> tuple[Gate, str]:
    """A run held against the version of a registered model that an alias is on, and that version's URI.

    The run is the best of the latest campaign, the model is called like the run's experiment, unless they are
    named. Raises RunNotFound, InputError where both had other validation data, and StoreError.
    """
    from qtrack.gate import gated
    from qtrack.ledger import Ledger

    ledger = Ledger.open(tracking_uri)
    strategy = ledger.strategies([run])[0] if run else _best(ledger.strategies())
    uri = f"models:/{name or strategy.experiment}@{against}"
    promoted = ledger.recorded(uri)
    return gated(promoted, ledger.recorded(strategy.run_id), max_drop, confidence), uri


def _best(strategies: Sequence[Strategy]) -> Strategy:
    from qtrack.report.verdict import best, closest

    found = best(strategies) or closest(strategies)
    if found is None:
        raise RunNotFound("no strategy of the latest campaign has finished and quantizes; name a RUN")
    return found


def reproduce(
    run: str,
    task: Task | str | None = None,
    *,
    tracking_uri: str | None = None,
    monitor: Monitor = SILENT,
) -> Reproduction:
    """Execute a run's recipe again, with as many threads, compare, and record the comparison as a run.

    What was made on a GPU is executed on one, or where there is none on the CPU: ``device`` has drifted then.

    Raises RunNotFound, TaskError where the task is not found, and StoreError where the run has not left what
    there is to compare with, as one that failed.
    """
    from qtrack.ledger import Ledger

    ledger = Ledger.open(tracking_uri)
    return _reproduced(ledger, run, task_of(ledger, run, task), monitor)


def reproduce_recipe(
    recipe: Path | str,
    task: Task | str,
    *,
    tracking_uri: str | None = None,
    monitor: Monitor = SILENT,
) -> Reproduction | Made:
    """Execute the recipe in a file, and compare with the latest recorded stage of the task that executed it.

    That is ``reproduce`` of that stage. Where the store has none, the result says what came out, and nothing
    is recorded. Raises RecipeError and TaskError.
    """
    from qtrack.engine import settled
    from qtrack.ledger import Ledger
    from qtrack.reading import read_text
    from qtrack.recipe import recipe_from_yaml

    path = Path(recipe)
    asked = settled(recipe_from_yaml(read_text(path, RecipeError), str(path)))
    ledger = Ledger.open(tracking_uri)
    here = task_of(ledger, "", task)
    stages = ledger.executed(here.name, asked)
    if not stages:
        return _made(here, asked, monitor)
    count = f"{len(stages)} recorded stages have" if len(stages) > 1 else "one recorded stage has"
    log.info("%s this recipe; compared with the latest, %s (%s)", count, stages[0].stage, stages[0].run_id)
    return _reproduced(ledger, stages[0].run_id, here, monitor)


def _made(task: Task, recipe: Recipe, monitor: Monitor) -> Made:
    from qtrack.data import inspect_splits
    from qtrack.engine import check_forward, execute
    from qtrack.reproduction import made_of

    splits = inspect_splits(task, monitor)
    check_forward(task)
    sizes = {name: split.samples for name, split in splits.items()}
    return made_of(execute(task, recipe, monitor=monitor, thorough=False, sizes=sizes))


def reproduce_all(
    experiment: str,
    task: Task | str | None = None,
    *,
    tracking_uri: str | None = None,
    monitor: Monitor = SILENT,
) -> list[Reproduction | Unproven]:
    """The same for every finished stage of an experiment, the oldest first; one that fails stops no other."""
    from qtrack.ledger import Ledger
    from qtrack.reproduction import Unproven

    ledger = Ledger.open(tracking_uri)
    given = None if task is None else task_of(ledger, "", task)
    found: list[Reproduction | Unproven] = []
    for strategy in ledger.finished(experiment):
        run = strategy.run_id
        try:
            found.append(_reproduced(ledger, run, given or task_of(ledger, run), monitor))
        except QtrackError as error:
            found.append(Unproven(run, strategy.stage, str(error)))
    return found


def _reproduced(ledger: Ledger, run: str, task: Task, monitor: Monitor) -> Reproduction:
    import torch

    from qtrack.data import inspect_splits
    from qtrack.engine import at_hand, check_forward, execute, torch_threads, using_device
    from qtrack.ingredients import common_ingredients, drifted, recipe_ingredients
    from qtrack.reproduction import compared, result_of

    recorded, threads = ledger.recorded(run), torch.get_num_threads()
    began = time.perf_counter()
    threads_as, device_as = torch_threads(recorded.threads), using_device(at_hand(recorded.device))
    with threads_as, device_as, ledger.reproduction(recorded) as record:
        splits = inspect_splits(task, monitor)
        check_forward(task)
        now = {**common_ingredients(task, splits), **recipe_ingredients(task, recorded.recipe)}
        for drift in drifted(recorded.ingredients, now):
            log.info("drifted: %s was %s, is %s", drift.name, drift.was[:16], drift.now[:16])
        sizes = {name: split.samples for name, split in splits.items()}
        outcome = execute(task, recorded.recipe, monitor=monitor, thorough=False, sizes=sizes)
        found = compared(recorded, result_of(outcome), now, threads)
        found = replace(found, reproduction_run=record.run.id or "")
        record.result(found, now, time.perf_counter() - began)
        log.info("%s: %s", found.stage, found.verdict)
    return found


def diagnose(
    subject: Path | str,
    task: Task | str | None = None,
    *,
    max_drop: float | None = None,
    tracking_uri: str | None = None,
    monitor: Monitor = SILENT,
) -> Diagnosis:
    """Which kind of error a quantized model has, on what evidence, and what to try next.

    Of a run, and recorded with it; or of the first recipe of a pipeline file that quantizes, and recorded
    nowhere. The target is the pipeline's, but for ``max_drop``. Raises RunNotFound, PipelineError, TaskError
    where the task is not found, and StoreError where a run has left too little.
    """
    ledger, case = case_of(subject, task, tracking_uri)
    return diagnosed(case, ledger, max_drop, monitor)


def case_of(
    subject: Path | str, task: Task | str | None, tracking_uri: str | None
) -> tuple[Ledger | None, Case]:
    """What is to be diagnosed, and the store; for a pipeline only where there is one that answers."""
    from qtrack.case import is_pipeline, planned_case, recorded_case
    from qtrack.ledger import Ledger

    if is_pipeline(subject):
        return _ledger_at_hand(tracking_uri), planned_case(Path(subject), task)
    ledger, run = Ledger.open(tracking_uri), str(subject)
    return ledger, recorded_case(ledger, run, task_of(ledger, run, task), task)


def _ledger_at_hand(tracking_uri: str | None) -> Ledger | None:
    from qtrack.ledger import Ledger

    try:
        return Ledger.open_existing(tracking_uri)
    except StoreError as error:
        log.warning("%s: what worked in earlier runs is not known", error)
        return None


def diagnosed(case: Case, ledger: Ledger | None, max_drop: float | None, monitor: Monitor) -> Diagnosis:
    """Diagnose, and record it where it is about a run; one that cannot be recorded is a warning."""
    from qtrack import diagnosis
    from qtrack.engine import torch_threads, using_device

    target = case.pipeline.target if max_drop is None else case.pipeline.target.having(max_drop=max_drop)
    with torch_threads(case.threads), using_device(case.device):
        found = diagnosis.diagnose(
            case.task,
            case.recipe,
            target,
            subject=case.subject,
            run_id=case.run_id,
            worked=ledger.worked() if ledger else _nothing_worked,
            monitor=monitor,
        )
    if ledger and case.run_id:
        try:
            ledger.record_diagnosis(case.run_id, found)
        except StoreError as error:
            log.warning("the diagnosis is not recorded: %s", error)
    return found


def _nothing_worked(cause: str) -> Mapping[str, Worked]:
    return {}


def sensitivity(
    subject: Path | str,
    task: Task | str | None = None,
    *,
    exact: bool = False,
    executor: Executor | None = None,
    tracking_uri: str | None = None,
    monitor: Monitor = SILENT,
) -> Ranking:
    """Which layers a quantized model's error comes from, on its calibration samples; recorded nowhere.

    Of a run or a pipeline file, as ``diagnose`` takes them. One sweep over the samples ranks all layers;
    ``exact`` switches each of them by itself as well; the workers of an ``executor`` share that. Raises what
    ``diagnose`` raises, BackendError where the backend gives no graph whose layers can be switched, and
    InputError where no layer is quantized.
    """
    from qtrack.data import inspect_splits
    from qtrack.engine import check_forward, torch_threads, using_device
    from qtrack.ingredients import common_ingredients
    from qtrack.remote import Terms
    from qtrack.sensitivity import Sensitivity
    from qtrack.shards import switched

    case = case_of(subject, task, tracking_uri)[1]
    helped = executor if exact and executor and executor.aside else None
    with torch_threads(case.threads or (1 if helped else None)), using_device(case.device):
        splits = inspect_splits(case.task, monitor)
        sizes = {name: split.samples for name, split in splits.items()}
        check_forward(case.task)
        found = Sensitivity(case.task, case.recipe, monitor, sizes=sizes)
        if not found.board.layers:
            raise InputError(f"{case.subject}: no layer runs on integers, so there is none to rank")
        ranking, shares = found.ranking, None
        if helped:
            ingredients = common_ingredients(case.task, splits)
            terms = Terms(reference_to(case.task), ingredients, case.threads or 1, case.device)
            shares = switched(helped, terms, found.recipe, monitor)
        return found.exact(ranking, shares) if exact else ranking


def audit(task: Task | str, *, monitor: Monitor = SILENT) -> tuple[Finding, ...]:
    """What is wrong with a task's calibration data, and what not, before anything is quantized.

    Raises TaskError and DataError.
    """
    from qtrack import diagnosis

    return diagnosis.audit(load_task(task) if isinstance(task, str) else task, monitor)


def diff(first: str, second: str, *, tracking_uri: str | None = None) -> Difference:
    """What differs between two recorded stages; raises RunNotFound, StoreError where one left too little."""
    from qtrack.difference import difference
    from qtrack.ledger import Ledger
    from qtrack.report.tables import paired_layers

    ledger = Ledger.open(tracking_uri)
    pairs = paired_layers(ledger.layers(first), ledger.layers(second))
    return difference(ledger.recorded(first), ledger.recorded(second), pairs)


def explain(
    found: Difference,
    task: Task | str | None = None,
    *,
    tracking_uri: str | None = None,
    monitor: Monitor = SILENT,
) -> Explanation:
    """Which difference moved the metric: both recipes, and each swap, executed on the task as it is now.

    The task is that of the second run unless it is given; runs of two tasks need it. Nothing is recorded.
    """
    from qtrack.data import inspect_splits
    from qtrack.engine import check_forward, execute, torch_threads
    from qtrack.explanation import explained
    from qtrack.ingredients import common_ingredients, recipe_ingredients
    from qtrack.ledger import Ledger

    ledger = Ledger.open(tracking_uri)
    first, second = (ledger.recorded(side.run_id) for side in (found.first, found.second))
    if task is None:
        _check_one_task(ledger, found)
    here = task_of(ledger, second.run_id, task)
    splits = inspect_splits(here, monitor)
    check_forward(here)
    sizes = {name: split.samples for name, split in splits.items()}

    def scores(title: str, recipe: Recipe, threads: int | None) -> Scores:
        with torch_threads(threads):
            shown = Titled(title, monitor)
            return execute(here, recipe, monitor=shown, thorough=False, sizes=sizes).validation.scores

    now = {**common_ingredients(here, splits), **recipe_ingredients(here, second.recipe)}
    return explained(found, first, second, now, scores)


def _check_one_task(ledger: Ledger, found: Difference) -> None:
    first, second = ledger.strategies([found.first.run_id, found.second.run_id])
    if first.experiment != second.experiment:
        raise InputError(
            f"{first.stage} is of the task {first.experiment!r}, {second.stage} of {second.experiment!r}: "
            "say with --task which one executes both recipes"
        )


def task_of(ledger: Ledger, run: str, task: Task | str | None = None) -> Task:
    """The task given, or else the recorded one, its file looked for in this folder and one level below."""
    if isinstance(task, Task):
        return task
    if task is not None:
        return load_task(task)
    try:
        return load_recorded_task(ledger.pipeline(run).task)
    except TaskError as error:
        raise TaskError(f"{error}; say where it is now: --task path/to/file.py:Class") from error


def open_ledger(tracking_uri: str | None = None) -> Ledger:
    """The store, with figures drawn for each stage that is recorded in it, and a page for each campaign."""
    from qtrack.ledger import Ledger
    from qtrack.report.figures import stage_figures

    return Ledger.open(tracking_uri, figures=stage_figures, report=page)


def page(
    strategies: Sequence[Strategy], results: Sequence[StageResult], environment: Mapping[str, Any]
) -> str:
    """The page that is recorded with a campaign."""
    from qtrack.report.document import document
    from qtrack.report.material import finished_material

    return document(finished_material(strategies, results, environment))
