"""``qtrack repair``: end runs whose process is gone."""

from __future__ import annotations

import click

from qtrack.cli.options import as_json, debug, tracking_uri


@click.command()
@click.option("--experiment", metavar="NAME", help="Only the runs of this experiment (of a task).")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Age of the heartbeat from which a run may be dead; default: 60.",
)
@as_json
@tracking_uri
@debug
def repair(experiment: str | None, older_than: float | None, as_json: bool, tracking_uri: str | None) -> None:
    """End runs as KILLED that MLflow believes to be running and whose process is gone.

    Only those count as dead whose heartbeat is old and, where they ran on this host, whose process is no
    more. `qtrack run` does the same for its experiment before it begins.

    \b
    Example:
      qtrack repair --experiment digits
    """
    from qtrack.cli import render
    from qtrack.ledger import Ledger
    from qtrack.report.hygiene import repaired

    ledger = Ledger.open(tracking_uri)
    found = ledger.repair(experiment) if older_than is None else ledger.repair(experiment, older_than)
    if as_json:
        render.print_json([one._asdict() for one in found])
    elif found:
        render.show(repaired(found))
    else:
        render.remark("no run is running")
