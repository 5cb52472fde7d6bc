"""``qtrack diff``: what differs between two runs."""

from __future__ import annotations

import click

from qtrack.cli.options import as_json, debug, tracking_uri


@click.command()
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@as_json
@tracking_uri
@debug
def diff(first: str, second: str, as_json: bool, tracking_uri: str | None) -> None:
    """Say what differs between two runs: recipe, data, weights, code, environment, layers, samples, metric.

    RUN is a run id or a unique beginning of one, CAMPAIGN/STAGE, or a stage of the latest campaign.

    \b
    Examples:
      qtrack diff ptq per_channel
      qtrack diff 3f2a9c digits-20250101-120000-ab12/ptq --json
    """
    from qtrack import api
    from qtrack.cli import render
    from qtrack.report.difference import difference, equality

    found = api.diff(first, second, tracking_uri=tracking_uri)
    if as_json:
        render.print_json(found.to_dict())
    elif found.equal:
        click.echo(equality(found))
    else:
        render.show(difference(found))
