"""``qtrack reproduce``: execute a run's recipe again, and prove equality or say what drifted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qtrack.cli.options import as_json, debug, tracking_uri
from qtrack.cli.signals import terminating_as_interrupted

if TYPE_CHECKING:
    from qtrack.monitor import Monitor

NOT_REPRODUCED, FAILED = 1, 3


@click.command()
@click.argument("run", required=False)
@click.option("--all", "everything", is_flag=True, help="Every finished stage of an experiment.")
@click.option("--experiment", metavar="NAME", help="The experiment (of a task) that --all is about.")
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
    task: str | None,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """Execute a run's recipe again, and compare what goes in and what comes out with what is on record.

    Exits with 0 where the model is bit-identical or equivalent, with 1 where it is different. RUN is a run id
    or a unique beginning of one, CAMPAIGN/STAGE, or a stage of the latest campaign. A task that is named by
    its file is looked for in this folder, and one level below it.

    \b
    Examples:
      qtrack reproduce per_channel
      qtrack reproduce 3f2a9c --task moved/digits.py:Digits
      qtrack reproduce --all --experiment digits --json
    """
    from rich.console import Console

    from qtrack.cli import progress

    if (run is None) != everything or everything != (experiment is not None):
        raise click.UsageError("name a RUN, or give --all with --experiment NAME")
    with terminating_as_interrupted(), progress.monitor(Console(stderr=True)) as monitor:
        if run is not None:
            code = _one(run, task, tracking_uri, monitor, as_json=as_json)
        else:
            code = _all(str(experiment), task, tracking_uri, monitor, as_json=as_json)
    ctx.exit(code)


def _one(run: str, task: str | None, uri: str | None, monitor: Monitor, *, as_json: bool) -> int:
    from qtrack import api
    from qtrack.cli import render
    from qtrack.report.reproduction import reproduction

    found = api.reproduce(run, task, tracking_uri=uri, monitor=monitor)
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
