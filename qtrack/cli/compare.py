"""``qtrack compare``: strategies side by side."""

from __future__ import annotations

import click

from qtrack.cli.options import as_json, debug, tracking_uri


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--experiment", metavar="NAME", help="The latest campaign of this experiment (of a task).")
@click.option("--campaign", metavar="ID", help="The strategies of one execution of a pipeline.")
@as_json
@tracking_uri
@debug
def compare(
    runs: tuple[str, ...],
    experiment: str | None,
    campaign: str | None,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """Put strategies side by side; without arguments those of the latest campaign.

    RUN is a run id or a unique beginning of one, CAMPAIGN/STAGE, or a stage of the latest campaign.

    \b
    Examples:
      qtrack compare
      qtrack compare ptq qat
      qtrack compare --experiment digits --json
    """
    from qtrack.cli import render
    from qtrack.ledger import Ledger

    found = Ledger.open(tracking_uri).strategies(runs, experiment=experiment, campaign=campaign)
    render.strategies(found, as_json=as_json)
