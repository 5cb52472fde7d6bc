"""``qtrack gate``: fail where a strategy is worse than the promoted one."""

from __future__ import annotations

import math

import click

from qtrack.cli.options import as_json, debug, tracking_uri

WORSE = 1


@click.command()
@click.argument("run", required=False)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0.0),
    default=0.01,
    show_default=True,
    help="How much of the metric it may lose against the promoted one.",
)
@click.option(
    "--against", default="champion", show_default=True, metavar="ALIAS", help="Of the promoted version."
)
@click.option("--name", metavar="MODEL", help="The registered model; default: called like RUN's experiment.")
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1.0, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="How sure the answer must be.",
)
@click.option("--strict", is_flag=True, help="Fail as well where it is not sure.")
@as_json
@tracking_uri
@debug
@click.pass_context
def gate(
    ctx: click.Context,
    run: str | None,
    max_drop: float,
    against: str,
    name: str | None,
    confidence: float,
    strict: bool,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """Fail where a strategy is significantly worse than the promoted one.

    Both are compared on the same validation samples, by a paired interval. The exit code is 1 where the whole
    interval lies beyond the drop that is allowed, 2 where the two had other validation data, 0 where it lies
    below, or where it is not sure. RUN is the best strategy of the latest campaign unless it is named: a run
    id or a unique beginning of one, CAMPAIGN/STAGE, or a stage of the latest campaign.

    \b
    Examples:
      qtrack gate
      qtrack gate qat --max-drop 0.005 --strict
      qtrack gate --against champion --name digits --json
    """
    from qtrack import api
    from qtrack.cli import render
    from qtrack.errors import InputError
    from qtrack.report.gate import gate_line

    if not math.isfinite(max_drop):
        raise InputError(f"--max-drop {max_drop}: no amount that can be lost")
    found, uri = api.gate(
        run, against, name, max_drop=max_drop, confidence=confidence, tracking_uri=tracking_uri
    )
    if as_json:
        render.print_json(found.to_dict() | {"against": uri, "strict": strict})
    else:
        click.echo(gate_line(found, uri))
    if found.passes is False or (strict and found.passes is None):
        ctx.exit(WORSE)
