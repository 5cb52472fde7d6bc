"""``qtrack prices``: what each layer costs at each precision, as a ladder stage measured it."""

from __future__ import annotations

import click

from qtrack.cli.options import as_json, debug, tracking_uri


@click.command()
@click.argument("run")
@as_json
@tracking_uri
@debug
def prices(run: str, as_json: bool, tracking_uri: str | None) -> None:
    """Show the price table of a ladder stage: each layer's error, time and size on each rung.

    A layer's SQNR has everything before it in float, times are of one batch on the machine that measured
    them. A * marks what was chosen, conversions included. RUN is a run id or a unique beginning of one,
    CAMPAIGN/STAGE, or a stage of the latest campaign.

    \b
    Examples:
      qtrack prices ladder
      qtrack prices ladder --json
    """
    from qtrack.cli import render
    from qtrack.ledger import Ledger
    from qtrack.report.prices import prices as table

    rows = Ledger.open(tracking_uri).prices(run)
    if as_json:
        render.print_json(rows)
    else:
        render.show(table(rows))
