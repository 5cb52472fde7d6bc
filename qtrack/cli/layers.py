"""``qtrack layers``: the layer table of a run, or what moved between two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrack.cli.files import contents_of, plot_option, write_file
from qtrack.cli.options import as_json, debug, tracking_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qtrack.report.sources import Row

LONGEST_REFERENCE = 14


@click.command()
@click.argument("run")
@click.argument("other", required=False, metavar="[RUN]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Show only the first N layers.")
@plot_option
@as_json
@tracking_uri
@debug
def layers(
    run: str, other: str | None, limit: int | None, plot: Path | None, as_json: bool, tracking_uri: str | None
) -> None:
    """Show the layers of a run, the largest error first; of two runs, what moved.

    A layer's own SQNR has everything before it in float; the accumulated one has the errors of all layers
    before it. A * marks the main sources of error: the fewest layers, worst first, whose own noise makes up
    half of all layers' own noise. RUN is a run id or a unique beginning of one, CAMPAIGN/STAGE, or a stage
    of the latest campaign.

    \b
    Examples:
      qtrack layers ptq --limit 10
      qtrack layers ptq per_channel
      qtrack layers ptq --plot ptq.html
      qtrack layers ptq --json
    """
    from qtrack.cli import render
    from qtrack.ledger import Ledger
    from qtrack.report import tables
    from qtrack.report.sources import worst_first

    contents = contents_of(plot) if plot else None
    ledger = Ledger.open(tracking_uri)
    rows = ledger.layers(run)
    if other is None:
        data: Sequence[Row] = worst_first(rows)
        table = tables.layers(rows, limit)
    else:
        data = tables.paired_layers(rows, ledger.layers(other))
        table = tables.moved(data, (_short(run), _short(other)), limit)
    if plot and contents:
        write_file(plot, contents(_figure(run, other, data, limit), _title(run, other), table))
    if as_json:
        render.print_json(data[:limit])
    else:
        render.show(table)
    if plot:
        render.remark(f"wrote {plot}")


def _figure(run: str, other: str | None, data: Sequence[Row], limit: int | None) -> Figure:
    from qtrack.errors import InputError
    from qtrack.report.layer_figures import layers_figure, moved_figure

    if other is None:
        figure = layers_figure(_short(run), data, limit)
    else:
        figure = moved_figure((_short(run), _short(other)), data, limit)
    if figure is None:
        raise InputError(
            f"{_title(run, other)}: nothing to draw, no layer has a share of the error of its own"
        )
    return figure


def _title(run: str, other: str | None) -> str:
    return f"layers of {run}" if other is None else f"layers of {run} and {other}"


def _short(reference: str) -> str:
    return reference if len(reference) <= LONGEST_REFERENCE else f"{reference[:8]}…"
