"""``qtrack compare``: strategies side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrack.cli.files import contents_of, plot_option, write_file
from qtrack.cli.options import as_json, debug, tracking_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qtrack.ledger import Strategy


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--experiment", metavar="NAME", help="The latest campaign of this experiment (of a task).")
@click.option("--campaign", metavar="ID", help="The strategies of one execution of a pipeline.")
@plot_option
@as_json
@tracking_uri
@debug
def compare(
    runs: tuple[str, ...],
    experiment: str | None,
    campaign: str | None,
    plot: Path | None,
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
      qtrack compare --plot strategies.png
    """
    from qtrack.cli import render
    from qtrack.ledger import Ledger
    from qtrack.report.tables import comparison

    contents = contents_of(plot) if plot else None
    found = Ledger.open(tracking_uri).strategies(runs, experiment=experiment, campaign=campaign)
    if plot and contents:
        write_file(plot, contents(_figure(found), "strategies", comparison(found)))
    render.strategies(found, as_json=as_json)
    if plot:
        render.remark(f"wrote {plot}")


def _figure(strategies: Sequence[Strategy]) -> Figure:
    from qtrack.errors import InputError
    from qtrack.report.figures import strategies_figure

    figure = strategies_figure(strategies)
    if figure is None:
        raise InputError("nothing to draw: no strategy has finished")
    return figure
