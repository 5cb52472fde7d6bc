"""``qtrack sensitivity``: which layers the error comes from, in several measures side by side."""

from __future__ import annotations

import click

from qtrack.cli import options
from qtrack.cli.options import as_json, debug, tracking_uri
from qtrack.cli.signals import terminating_as_interrupted


@click.command()
@click.argument("subject", metavar="RUN|PIPELINE")
@click.option("--exact", is_flag=True, help="Switch each layer by itself as well, alone and back to float.")
@click.option("--task", metavar="TASK", help="Where the task is now, instead of the one recorded.")
@options.executor
@options.address
@options.workers
@as_json
@tracking_uri
@debug
def sensitivity(
    subject: str,
    exact: bool,
    task: str | None,
    executor: str | None,
    address: str | None,
    workers: int | None,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """Rank the layers of a quantized model by what they do to its output, the worst first.

    One sweep over the calibration samples ranks all layers; --exact converts nothing anew either. RUN is a
    run id or a unique beginning of one, CAMPAIGN/STAGE, or a stage of the latest campaign; its task is found
    as 'qtrack reproduce' finds it. Of a PIPELINE file, the first recipe that quantizes is taken. A recipe
    that trains is trained once more. The workers of an executor share the work of --exact. Nothing is
    recorded.

    \b
    Examples:
      qtrack sensitivity ptq
      qtrack sensitivity ptq --exact
      qtrack sensitivity digits.yaml --json
    """
    from rich.console import Console

    from qtrack import api
    from qtrack.cli import progress, render
    from qtrack.executors import open_executor
    from qtrack.report.sensitivity import screen

    with (
        terminating_as_interrupted(),
        progress.monitor(Console(stderr=True)) as monitor,
        open_executor(executor, address=address, workers=workers) as chosen,
    ):
        found = api.sensitivity(
            subject, task, exact=exact, executor=chosen, tracking_uri=tracking_uri, monitor=monitor
        )
    if as_json:
        render.print_json(found.to_dict())
    else:
        render.show_all(screen(found))
