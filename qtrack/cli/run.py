"""``qtrack run``: all stages of a pipeline, recorded; the table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtrack.cli import options
from qtrack.cli.options import as_json, debug, tracking_uri
from qtrack.cli.signals import terminating_as_interrupted
from qtrack.errors import StoreAway

if TYPE_CHECKING:
    from qtrack.budget import Budget
    from qtrack.executors import Executor
    from qtrack.finding import Worked
    from qtrack.ledger import Ledger, Strategy
    from qtrack.pipeline import Plan
    from qtrack.recipe import Recipe
    from qtrack.records import CampaignRecord, Known, Setting, StageResult
    from qtrack.task import Task

TARGET_MISSED = 1


@click.command()
@click.argument("pipeline", type=click.Path(path_type=Path), metavar="PIPELINE.yaml")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a field, such as target.max_drop=0.01.",
)
@click.option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N, for all that computes in float.")
@click.option("--require-target", is_flag=True, help="Exit with 1 unless a strategy surely meets the target.")
@click.option("--fresh", is_flag=True, help="Execute every stage, even those that are on record already.")
@click.option("--max-minutes", type=click.FloatRange(min=0), help="Time for all searches together.")
@click.option("--max-evaluations", type=click.IntRange(min=1), help="Recipes that each search may try.")
@options.executor
@options.address
@options.workers
@click.option("-v", "--verbose", is_flag=True, help="Say also what the recording itself cost.")
@as_json
@tracking_uri
@debug
@click.pass_context
def run(
    ctx: click.Context,
    pipeline: Path,
    settings: tuple[str, ...],
    device: str | None,
    require_target: bool,
    fresh: bool,
    max_minutes: float | None,
    max_evaluations: int | None,
    executor: str | None,
    address: str | None,
    workers: int | None,
    verbose: bool,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """Run all stages of a pipeline file and record each as an MLflow run.

    A stage whose ingredients (weights, data, recipe, code, versions) equal those of a finished one on record
    is not executed again but referred to. So the same command goes on where an interrupted one stopped.
    With an executor, workers begin on stages and probes before their turn, and share long evaluations; what
    comes out is the same.
    A search whose budget is spent, or that Ctrl-C interrupts, leaves the best that it has found.

    \b
    Examples:
      qtrack run digits.yaml
      qtrack run digits.yaml --set target.max_drop=0.005 --set until=target
      qtrack run digits.yaml --require-target --json > strategies.json
      qtrack run digits.yaml --max-minutes 30
      qtrack run digits.yaml --device cuda
      qtrack run digits.yaml --executor processes --workers 4
    """
    from qtrack.api import open_ledger
    from qtrack.budget import Budget
    from qtrack.cli import render
    from qtrack.executors import open_executor
    from qtrack.pipeline import read_plan
    from qtrack.report.verdict import best

    start = time.perf_counter()
    with terminating_as_interrupted():
        plan = read_plan(pipeline, _parsed(settings) | ({"device": device} if device else {}))
        ledger = open_ledger(tracking_uri)
        budget = Budget(max_minutes, max_evaluations)
        threads = plan.pipeline.threads or 1
        with open_executor(executor, address=address, workers=workers, threads=threads) as chosen:
            noted, results = _recorded(plan, ledger, budget, chosen, fresh=fresh)
    strategies = noted.strategies()
    render.strategies(strategies, as_json=as_json)
    render.remark(_closing(strategies, results, ledger))
    if verbose:
        render.remark(_overhead(ledger.seconds, time.perf_counter() - start))
    if require_target and best(strategies) is None:
        ctx.exit(TARGET_MISSED)


def _recorded(
    plan: Plan, ledger: Ledger, budget: Budget, executor: Executor, *, fresh: bool
) -> tuple[_Noted, list[StageResult]]:
    from rich.console import Console

    from qtrack.campaign import run_plan
    from qtrack.cli.progress import monitor
    from qtrack.cli.render import remark
    from qtrack.scratch import Scratch

    noted = _Noted(ledger)
    try:
        with monitor(Console(stderr=True)) as shown:
            results = run_plan(
                plan,
                noted,
                shown,
                scratch=Scratch(ledger.scratch),
                fresh=fresh,
                budget=budget,
                executor=executor,
            )
    except BaseException:
        if noted.id:
            remark("what was recorded until here: qtrack compare")
        raise
    return noted, results


class _Noted:
    """The ledger as a recorder, with the campaign that it has opened."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.id = ""

    @contextmanager
    def campaign(self, setting: Setting) -> Iterator[CampaignRecord]:
        with self.ledger.campaign(setting) as self.record:
            self.id = self.record.id
            yield self.record

    def known(self, task: Task, *, question: str | None = None, execution: str | None = None) -> Known | None:
        return self.ledger.known(task, question=question, execution=execution)

    def winners(self, task: Task) -> Sequence[Recipe]:
        return self.ledger.winners(task)

    def worked(self) -> Callable[[str], Mapping[str, Worked]]:
        return self.ledger.worked()

    def strategies(self) -> list[Strategy]:
        """As the store has them; where it has not all, or does not answer now, as they were recorded."""
        from qtrack.cli.render import remark

        if not self.ledger.waiting:
            try:
                return self.ledger.strategies(campaign=self.id)
            except StoreAway as away:
                remark(f"{away}; it has the whole record")
        return self.record.strategies()


def _closing(strategies: list[Strategy], results: list[StageResult], ledger: Ledger) -> Iterator[str]:
    """What came out, where the error sits, where it is kept, and what to look at next."""
    from qtrack.ledger import mask_secrets
    from qtrack.report.verdict import best, closest, sentences

    yield ""
    yield from sentences(strategies)
    chosen = best(strategies) or closest(strategies)
    outcomes = {result.name: result.outcome for result in results}
    worst = outcomes[chosen.stage].worst_layer if chosen and chosen.stage in outcomes else None
    if chosen and worst:
        yield f"largest error in {chosen.stage}: {worst.layer} (own SQNR {worst.own_sqnr_db:.1f} dB)"
    if chosen and chosen.stage in outcomes:
        yield from _held_out(next(result for result in results if result.name == chosen.stage))
    yield f"recorded in {mask_secrets(ledger.uri)}"
    yield f"next: qtrack layers {chosen.stage} | qtrack ui" if chosen else "next: qtrack ui"


def _held_out(result: StageResult) -> Iterator[str]:
    """The chosen strategy on the test split; that no decision has seen it is what makes the figure honest."""
    chosen, floating = result.outcome.test, result.baseline.test
    if chosen is not None and floating is not None:
        samples = f"{len(chosen.scores)} test samples that no decision has seen"
        yield f"{result.name} on {samples}: {chosen.value:.4f}, float {floating.value:.4f}"


def _overhead(seconds: float, total: float) -> str:
    return f"ledger: {seconds:.1f} s of {total:.1f} s ({100 * seconds / total:.1f}%)"


def _parsed(settings: tuple[str, ...]) -> dict[str, Any]:
    from qtrack.errors import PipelineError
    from qtrack.reading import load_yaml

    pairs = [setting.partition("=") for setting in settings]
    faults = [f"--set {key}: write it as key=value" for key, equals, _ in pairs if not (key and equals)]
    if faults:
        raise PipelineError(faults)
    return {key: load_yaml(value, f"--set {key}", PipelineError) for key, _, value in pairs}
