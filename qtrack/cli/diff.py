"""``qtrack diff``: what differs between two runs, and which of it moved the metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qtrack.cli.options import as_json, debug, tracking_uri
from qtrack.cli.signals import terminating_as_interrupted

if TYPE_CHECKING:
    from qtrack.difference import Difference
    from qtrack.explanation import Explanation


@click.command()
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@click.option(
    "--explain", is_flag=True, help="Execute each difference alone, and say what it does to the metric."
)
@click.option("--task", metavar="TASK", help="The task that --explain executes on, instead of the recorded.")
@as_json
@tracking_uri
@debug
def diff(
    first: str, second: str, explain: bool, task: str | None, as_json: bool, tracking_uri: str | None
) -> None:
    """Say what differs between two runs: recipe, data, weights, code, environment, layers, samples, metric.

    With --explain both recipes are executed again, and the first one with one part of the second at a time:
    a changed part of the recipe, or the number of threads. Older data, weights, code and versions are not at
    hand; what is left of the change is theirs or due to parts acting together. RUN is a run id or a unique
    beginning of one, CAMPAIGN/STAGE, or a stage of the latest campaign.

    \b
    Examples:
      qtrack diff ptq per_channel
      qtrack diff ptq per_channel --explain
      qtrack diff 3f2a9c digits-20250101-120000-ab12/ptq --json
    """
    from qtrack import api
    from qtrack.cli import render
    from qtrack.report.difference import difference, equality, explanation

    if task is not None and not explain:
        raise click.UsageError("--task says what --explain executes on: give --explain as well")
    found = api.diff(first, second, tracking_uri=tracking_uri)
    if not as_json:
        if found.equal:
            click.echo(equality(found))
        else:
            render.show(difference(found))
    explained = _explained(found, task, tracking_uri) if explain and not found.equal else None
    if as_json:
        more = {"explanation": explained.to_dict() if explained else None} if explain else {}
        render.print_json(found.to_dict() | more)
    elif explained:
        click.echo()
        render.show(explanation(explained, found.second.metric, found.second.samples))


def _explained(found: Difference, task: str | None, uri: str | None) -> Explanation:
    from rich.console import Console

    from qtrack import api
    from qtrack.cli import progress

    with terminating_as_interrupted(), progress.monitor(Console(stderr=True)) as monitor:
        return api.explain(found, task, tracking_uri=uri, monitor=monitor)
