"""``qtrack reproduce``: execute a run's recipe again, and prove equality or say what drifted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrack.cli.options import as_json, debug, tracking_uri
from qtrack.cli.signals import terminating_as_interrupted

if TYPE_CHECKING:
    from qtrack.monitor import Monitor
    from qtrack.reproduction import Reproduction

NOT_REPRODUCED, FAILED = 1, 3


@click.command()
@click.argument("run", required=False)
@click.option("--all", "everything", is_flag=True, help="Every finished stage of an experiment.")
@click.option("--experiment", metavar="NAME", help="The experiment (of a task) that --all is about.")
@click.option(
    "--from-recipe",
    "recipe",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Execute this recipe (qtrack export RUN --recipe-only) on --task; no RUN is needed.",
)
@click.option("--task", metavar="TASK", help="Where the task is now, instead of the one recorded.")
@as_json
@tracking_uri
@debug
@click.pass_context
def reproduce(
    ctx: click.Context,
    run: str | None,
    everything: bool,
    experiment: str | None,
    recipe: Path | None,
    task: str | None,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """Execute a run's recipe again, and compare what goes in and what comes out with what is on record.

    Exits with 0 where the model is bit-identical or equivalent, with 1 where it is different. RUN is a run id
    or a unique beginning of one, CAMPAIGN/STAGE, or a stage of the latest campaign. A task that is named by
    its file is looked for in this folder, and one level below it.

    With --from-recipe the recipe's file and the task are enough: the stage to compare with is the latest in
    the task's experiment that executed this recipe. Where the store has none, the digests of what came out
    are printed, and the exit code is 0.

    \b
    Examples:
      qtrack reproduce per_channel
      qtrack reproduce 3f2a9c --task moved/digits.py:Digits
      qtrack reproduce --all --experiment digits --json
      qtrack reproduce --from-recipe best.yaml --task digits.py:Digits
    """
    from rich.console import Console

    from qtrack.cli import progress

    _check_usage(run, everything, experiment, recipe, task)
    with terminating_as_interrupted(), progress.monitor(Console(stderr=True)) as monitor:
        if run is not None:
            code = _one(run, task, tracking_uri, monitor, as_json=as_json)
        elif recipe is not None:
            code = _recipe(recipe, str(task), tracking_uri, monitor, as_json=as_json)
        else:
            code = _all(str(experiment), task, tracking_uri, monitor, as_json=as_json)
    ctx.exit(code)


def _check_usage(
    run: str | None, everything: bool, experiment: str | None, recipe: Path | None, task: str | None
) -> None:
    ways = run is not None, everything, recipe is not None
    if sum(ways) != 1 or everything != (experiment is not None):
        raise click.UsageError("name a RUN, or give --all with --experiment NAME, or --from-recipe FILE")
    if recipe is not None and task is None:
        raise click.UsageError("--from-recipe needs the task as well: --task file.py:Class")


def _one(run: str, task: str | None, uri: str | None, monitor: Monitor, *, as_json: bool) -> int:
    from qtrack import api

    return _show(api.reproduce(run, task, tracking_uri=uri, monitor=monitor), as_json=as_json)


def _recipe(recipe: Path, task: str, uri: str | None, monitor: Monitor, *, as_json: bool) -> int:
    from qtrack import api
    from qtrack.cli import render
    from qtrack.report.reproduction import made
    from qtrack.reproduction import Made

    found = api.reproduce_recipe(recipe, task, tracking_uri=uri, monitor=monitor)
    if not isinstance(found, Made):
        return _show(found, as_json=as_json)
    if as_json:
        render.print_json(found.to_dict())
    else:
        render.show(made(found))
    return 0


def _show(found: Reproduction, *, as_json: bool) -> int:
    from qtrack.cli import render
    from qtrack.report.reproduction import reproduction

    if as_json:
        render.print_json(found.to_dict())
    else:
        render.show(reproduction(found))
    return 0 if found.holds else NOT_REPRODUCED


def _all(experiment: str, task: str | None, uri: str | None, monitor: Monitor, *, as_json: bool) -> int:
    from qtrack import api
    from qtrack.cli import render
    from qtrack.report.reproduction import reproductions
    from qtrack.reproduction import Unproven

    found = api.reproduce_all(experiment, task, tracking_uri=uri, monitor=monitor)
    if as_json:
        render.print_json([one.to_dict() for one in found])
    else:
        render.show(reproductions(found))
    if any(not isinstance(one, Unproven) and not one.holds for one in found):
        return NOT_REPRODUCED
    return FAILED if any(isinstance(one, Unproven) for one in found) else 0
